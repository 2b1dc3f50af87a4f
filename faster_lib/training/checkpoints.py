"""What an interrupted training goes on from: its last two states, each under its sha256, and the same videos."""

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from faster_lib.store import BEGUN, Entry, read_json, write_whole
from faster_lib.training.ranks import find_ranks

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # in the folder of what is being trained
BEFORE = "checkpoint.before.pt"  # the one before, should the newer be damaged later
LIST = "videos.txt"  # the real videos that the training was begun on


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Keep a state, and the one before."""
    torch.save(state, content := io.BytesIO())
    if (folder / CHECKPOINT).is_file():
        os.replace(folder / CHECKPOINT, folder / BEFORE)
    write_whole(folder / CHECKPOINT, content.getvalue() + hashlib.sha256(content.getvalue()).digest())


def find_checkpoints(folder: Path) -> list[Path]:
    """List what an interrupted training can go on from, the newest first."""
    return [path for path in (folder / CHECKPOINT, folder / BEFORE) if path.is_file()]


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest state that is whole, running no code in its file; ValueError if there are some and none is."""
    for number, path in enumerate(found := find_checkpoints(folder)):
        content = path.read_bytes()
        if hashlib.sha256(content[:-32]).digest() == content[-32:]:
            if number:
                log.warning("%s is damaged; the training goes on from %s", found[0], path)
                found[0].unlink(missing_ok=True)  # lest it becomes the older one
            return torch.load(io.BytesIO(content), "cpu", weights_only=True)
    if found:
        raise ValueError(f"{found[0]} and any before it are damaged; to train from the beginning, remove {folder}")


def remove_checkpoints(folder: Path) -> None:
    """Remove what an interrupted training would have gone on from."""
    for path in find_checkpoints(folder):
        path.unlink(missing_ok=True)


def freeze_list(entry: Entry, split: str, videos: Sequence[str]) -> None:
    """Keep the list of real videos beside the checkpoint, and see whether the training was begun on another list.

    Raises: ValueError, naming videos, if it was, and is not finished.
    """
    names = [f"{name}\n" for name in (split, *videos)]
    for begun in entry.path.parent.glob(f"{entry.label}-*/{BEGUN}"):
        before, path = read_json(begun).get("depends", {}), begun.parent / LIST  # damaged, or without a list yet
        kept = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
        is_same = kept[:1] == names[:1] and {**before, "videos": ""} == {**entry.depends, "videos": ""}
        if is_same and find_checkpoints(begun.parent):
            changed = [f"{'+-'[name in kept]} {name.strip()}" for name in sorted({*kept} ^ {*names})]
            raise ValueError(
                f"{begun.parent} is this training, not finished, on other videos: {', '.join(changed[:9])} "
                f"({len(changed)} in all; where none, a file or another split of the index has changed). Bring these "
                "videos back and index them again, or remove that folder to train from the beginning"
            )
    if find_ranks().is_main_process:
        write_whole(entry.path / LIST, "".join(names).encode())
