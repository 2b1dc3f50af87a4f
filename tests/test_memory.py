"""What a process frees and keeps."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from faster_lib.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):
        torch.ones(2**24)  # 64 MiB, in 16,384 pages of 4 KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory(), faults(), faults())
"""


def run(**environment: str) -> tuple[str, int, int]:
    """Let a process of its own say whether it keeps memory, and count its page faults, twice."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True, timeout=300)
    kept, first, again = printed.stdout.split()
    return kept, int(first), int(again)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
def test_memory_is_used_again_unless_the_environment_sets_the_allocator():
    kept, first, again = run()
    assert kept == "True" and again < 20_000  # of 262,144; blocks find their places in the first round
    kept, first, again = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False" and min(first, again) > 250_000
