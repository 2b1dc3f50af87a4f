"""What an interrupted training goes on from: its last two states, each under its sha256."""

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

from faster_lib.store import write_whole

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"  # in the folder of what is being trained
BEFORE = "checkpoint.before.pt"  # the one before, should the newer be damaged later


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
