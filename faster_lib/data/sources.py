"""Where a profile's videos come from: generated on first use, in any layout, or real ones in a folder of the user's."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from faster_lib.data.datasets import VideoList, read_annotations
from faster_lib.data.imitation import RECIPE_IMITATION, imitate
from faster_lib.data.layouts import folder_of, read_layout
from faster_lib.data.synthetic import RECIPE, generate
from faster_lib.paths import RUNS
from faster_lib.profiles import Data, Profile
from faster_lib.store import Entry, hash_of

_LATER_KEYS = ("annotations", "fold")  # left out of hashes where they are null, so that older results stay valid


def load_videos(profile: Profile, split: str, *, runs: Path = RUNS) -> VideoList:
    """Find a split's videos, generating them first where the profile says so.

    Raises: ValueError if the set's number of classes is not the profile's; what `read_layout` raises.
    """
    if profile.data.source == "generated":
        videos = read_annotations(generate(profile.scene, split, workers=profile.loading.workers, runs=runs), split)
    else:
        data = profile.data if profile.scene is None else _imitate(profile, runs)
        videos = _read_real(data, split)
    if len(videos.classes) != profile.data.num_classes:
        raise ValueError(
            f"the videos have {len(videos.classes)} classes, but data.num_classes is {profile.data.num_classes}"
        )
    return videos


def what_videos_depend_on(profile: Profile, split: str) -> dict[str, Any]:
    """Give everything that decides which clips a split yields, as plain JSON for a result's hash."""
    left_out = {key for key in _LATER_KEYS if getattr(profile.data, key) is None} | {"most_unreadable_share"}
    depends = {"split": split, "data": profile.data.model_dump(mode="json", exclude=left_out), "recipe": RECIPE}
    if profile.scene is None:
        videos = _read_real(profile.data, split)
        root = folder_of(profile.data.root)
        paths = [path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path) for path in videos.paths]
        depends["list"] = hash_of({"paths": paths, "targets": videos.targets, "classes": videos.classes})
    elif profile.data.source == "generated":
        depends["scene"] = profile.scene.model_dump(mode="json", exclude={"videos"})
        depends["videos"] = profile.scene.videos[split]
    else:
        depends |= _what_imitations_depend_on(profile)
    return depends


def _what_imitations_depend_on(profile: Profile) -> dict[str, Any]:
    scene = profile.scene.model_dump(mode="json")
    return {"recipe": RECIPE, "imitation": RECIPE_IMITATION, "layout": profile.data.source, "scene": scene}


def _imitate(profile: Profile, runs: Path) -> Data:
    """Generate the videos in the layout of the profile's source, unless they are there, and give where to read them."""
    layout = profile.data.source
    entry = Entry("imitations", layout, _what_imitations_depend_on(profile), runs)
    entry.complete(lambda: imitate(profile.scene, layout, entry.path, workers=profile.loading.workers))
    return profile.data.model_copy(update={"root": str(entry.path)})


@lru_cache(maxsize=8)
def _read_real(data: Data, split: str) -> VideoList:
    return read_layout(data, split)  # once a process, since a large set takes a while to list
