"""Where a profile's videos come from: generated on first use, in any layout, or real ones in a folder of the user's."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from faster_lib.data.datasets import VideoList, read_annotations
from faster_lib.data.imitation import RECIPE_IMITATION, imitate
from faster_lib.data.layouts import folder_of, read_layout
from faster_lib.data.scan import index_path, name_in, scan
from faster_lib.data.synthetic import RECIPE, generate
from faster_lib.paths import RUNS
from faster_lib.profiles import Data, Profile
from faster_lib.store import Entry, hash_of

log = logging.getLogger(__name__)

_LATER_KEYS = ("annotations", "fold")  # left out of hashes where they are null, so that older results stay valid


def load_videos(profile: Profile, split: str, *, runs: Path = RUNS, is_training: bool = False) -> VideoList:
    """Find a split's readable videos: generated first where the profile says so, real ones indexed first.

    Args:
        is_training: refuse a split of which too many videos are missing or corrupt.

    Raises: ValueError if the set's number of classes is not the profile's, or if too many videos are unreadable; what
        `read_layout` raises.
    """
    if profile.data.source == "generated":
        videos = read_annotations(generate(profile.scene, split, workers=profile.loading.workers, runs=runs), split)
    else:
        profile = profile if profile.scene is None else _imitate(profile, runs)
        videos, _ = _read_real(profile.data, split, profile.loading.workers, runs)
        _report(videos, profile, split, runs, is_training)
    if len(videos.classes) != profile.data.num_classes:
        raise ValueError(
            f"the videos have {len(videos.classes)} classes, but data.num_classes is {profile.data.num_classes}"
        )
    return videos


def _report(videos: VideoList, profile: Profile, split: str, runs: Path, is_training: bool) -> None:
    unreadable, expected = videos.missing + videos.corrupt, videos.census["expected"]
    message = (
        f"{unreadable} of the {expected} videos of split {split!r} cannot be used: {videos.missing} missing, "
        f"{videos.corrupt} corrupt; {index_path(folder_of(profile.data.root), runs)} says why"
    )
    most = profile.data.most_unreadable_share
    if not len(videos) or (is_training and unreadable > most * expected):
        raise ValueError(f"{message}. data.most_unreadable_share is {most}: mend the set, or raise it to train without")
    if unreadable:
        _warn_once(message)


@lru_cache
def _warn_once(message: str) -> None:
    log.warning("%s; they are left out", message)


def what_videos_depend_on(profile: Profile, split: str, *, runs: Path = RUNS) -> dict[str, Any]:
    """Give everything that decides which clips a split yields, as plain JSON for a result's hash."""
    left_out = {key for key in _LATER_KEYS if getattr(profile.data, key) is None} | {"most_unreadable_share"}
    depends = {"split": split, "data": profile.data.model_dump(mode="json", exclude=left_out), "recipe": RECIPE}
    if profile.scene is None:
        _, depends["list"] = _read_real(profile.data, split, profile.loading.workers, runs)
    elif profile.data.source == "generated":
        depends["scene"] = profile.scene.model_dump(mode="json", exclude={"videos"})
        depends["videos"] = profile.scene.videos[split]
    else:
        depends |= _what_imitations_depend_on(profile)
    return depends


def _what_imitations_depend_on(profile: Profile) -> dict[str, Any]:
    scene = profile.scene.model_dump(mode="json")
    return {"recipe": RECIPE, "imitation": RECIPE_IMITATION, "layout": profile.data.source, "scene": scene}


def _imitate(profile: Profile, runs: Path) -> Profile:
    """Generate the videos in the layout of the profile's source, unless they are there, and say where to read them."""
    layout = profile.data.source
    entry = Entry("imitations", layout, _what_imitations_depend_on(profile), runs)
    entry.complete(lambda: imitate(profile.scene, layout, entry.path, workers=profile.loading.workers))
    return profile.model_copy(update={"data": profile.data.model_copy(update={"root": str(entry.path)})})


@lru_cache(maxsize=8)
def _read_real(data: Data, split: str, workers: int, runs: Path) -> tuple[VideoList, str]:
    """List and index a split, once a process; give the readable videos, and a hash of all and of their content."""
    listed, root = read_layout(data, split), folder_of(data.root)
    rows = scan(listed.paths, root, workers=workers, runs=runs)
    kept = [i for i, path in enumerate(listed.paths) if rows[path].status == "readable"]
    paths = tuple(listed.paths[i] for i in kept)
    videos = VideoList(
        paths,
        tuple(listed.targets[i] for i in kept),
        listed.classes,
        tuple(rows[path].frames for path in paths),
        tuple(rows[path].is_seekable for path in paths),
        missing=sum(row.status == "missing" for row in rows.values()),
        corrupt=sum(row.status == "corrupt" for row in rows.values()),
    )
    contents = [(name_in(root, path), row.status, row.sha256) for path, row in rows.items()]
    return videos, hash_of({"contents": contents, "targets": listed.targets, "classes": listed.classes})
