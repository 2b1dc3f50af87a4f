"""The files of a store of feature maps: shards whose names say what they hold, verified and then read bit by bit."""

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save

from faster_lib.store import Entry, has_hash, hold, read_json, write_whole

log = logging.getLogger(__name__)

VERIFIED = "verified.json"  # beside the shards: those that are whole
_SHARD = re.compile(r"shard_(\d+)-(\d+)-([0-9a-f]{16})\.safetensors")


class Shard(NamedTuple):
    """A file with the feature maps of some consecutive videos, and the first 16 digits of its sha256."""

    path: Path
    videos: range
    sha256: str


def write_shard(folder: Path, videos: range, tensors: dict[str, torch.Tensor], *, is_8_bit: bool = False) -> None:
    """Write a shard under the hash of its content, the features if asked in 8 bits with a step for each channel."""
    if is_8_bit:
        steps = tensors["features"].float().abs().amax((0, 1, 2, 4, 5, 6)).clamp_min(1e-12).view(-1, 1, 1, 1) / 127
        tensors = {**tensors, "features": (tensors["features"] / steps).round().to(torch.int8), "steps": steps}
    content = save(tensors)
    digest = hashlib.sha256(content).hexdigest()[:16]
    write_whole(folder / f"shard_{videos.start:07d}-{videos.stop:07d}-{digest}.safetensors", content)


def list_shards(folder: Path) -> list[Shard]:
    """List a store's shards, in the order of their videos."""
    named = [(path, _SHARD.fullmatch(path.name)) for path in sorted(folder.glob("shard_*.safetensors"))]
    return [Shard(path, range(int(name[1]), int(name[2])), name[3]) for path, name in named if name]


def find_gaps(shards: Sequence[Shard], num_videos: int, shard_videos: int) -> list[range]:
    """Give the videos that no shard holds, in stretches of at most `shard_videos`."""
    starts = [0, *(shard.videos.stop for shard in shards)]
    stops = [*(shard.videos.start for shard in shards), num_videos]
    return [
        range(first, min(first + shard_videos, stop))
        for start, stop in zip(starts, stops, strict=True)
        for first in range(start, stop, shard_videos)
    ]


def drop_damaged(entry: Entry) -> None:
    """Remove the shards that are not what their names say, and the record of a store that lacks some.

    A shard is read for that once, and again if its size or time is another than it was then: `verified.json` has both.
    """
    if not entry.path.is_dir():
        return
    with hold(entry.path.with_name(f"{entry.path.name}.lock"), lambda: "another process"):
        known, found = read_json(entry.path / VERIFIED), {}
        for path, _, sha256 in list_shards(entry.path):
            about = [(stat := path.stat()).st_size, stat.st_mtime_ns]
            if known.get(path.name) == about or has_hash(path, sha256):
                found[path.name] = about
            else:
                log.warning("%s is damaged; its features are computed again", path)
                path.unlink(missing_ok=True)
        if found != known:
            write_whole(entry.path / VERIFIED, json.dumps(found).encode())
        if entry.is_complete:
            try:
                videos = entry.record["measures"]["videos"]
                gaps = find_gaps(list_shards(entry.path), videos, videos)
                fault = gaps and f"{entry.path} lacks videos {gaps[0][0]} to {gaps[-1][-1]}"
            except ValueError as error:
                fault = error
            if fault:
                log.warning("%s; it is mended", fault)
                (entry.path / "record.json").unlink(missing_ok=True)


class ShardReader:
    """One network's shards. No file is open but while it is read, and no more of it is read than is asked for."""

    def __init__(self, folder: Path):
        self.shards, kept = list_shards(folder), []
        self.stops = torch.tensor([shard.videos.stop for shard in self.shards])
        for shard in self.shards:
            with safe_open(shard.path, "pt") as file:
                kept.append((file.get_tensor("targets"), file.get_tensor("square_sums")))
                self.shape = tuple(file.get_slice("features").get_shape()[1:])  # (views, N, C, l, h, w)
        self.targets, self.square_sums = (torch.cat(parts) for parts in zip(*kept, strict=True))

    def read(self, videos: torch.Tensor, views: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
        """Read n clips of B videos: (B,), (B,), (B, n) -> (B, n, C, l, h, w) in half precision."""
        found = torch.empty(*clips.shape, *self.shape[2:], dtype=torch.float16)
        numbers = torch.bucketize(videos, self.stops, right=True)
        for number in numbers.unique().tolist():
            shard, rows = self.shards[number], (numbers == number).nonzero().flatten()
            inside = videos[rows, None] - shard.videos.start
            with safe_open(shard.path, "pt") as file:  # mapped: only what is taken from it is read
                maps = file.get_tensor("features")[inside, views[rows, None], clips[rows]]
                found[rows] = maps if maps.is_floating_point() else (maps * file.get_tensor("steps")).half()
        return found


def check_disk(folder: Path, sizes: Sequence[Sequence[int]]) -> None:
    """Raise OSError if files of these sizes, each a product, do not fit the disk on which a folder lies."""
    needed, free = sum(map(math.prod, sizes)), shutil.disk_usage(folder).free
    if needed > free:
        products = " + ".join(" × ".join(map(str, size)) for size in sizes)
        products += ": videos × views × clips × channels × frames × rows × columns × bytes"
        remedy = "set FASTER_RUNS to a larger disk, or write loading.features: on_the_fly, which stores none"
        raise OSError(f"feature maps need {needed:,} bytes ({products}), but {free:,} are free in {folder}; {remedy}")
