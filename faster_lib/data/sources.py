"""Where a profile's videos come from: generated on first use, or annotated in a folder of the user's."""

from pathlib import Path
from typing import Any

from faster_lib.data.datasets import VideoList, read_annotations
from faster_lib.data.synthetic import RECIPE, generate
from faster_lib.paths import RUNS
from faster_lib.profiles import Profile


def load_videos(profile: Profile, split: str, *, runs: Path = RUNS) -> VideoList:
    """Find a split's videos, generating them first where the profile says so.

    Raises: ValueError if the set's number of classes is not the profile's.
    """
    if profile.scene is not None:
        root = generate(profile.scene, split, workers=profile.loading.workers, runs=runs)
    else:
        root = Path(profile.data.root).expanduser()
    videos = read_annotations(root, split)
    if len(videos.classes) != profile.data.num_classes:
        raise ValueError(
            f"the videos have {len(videos.classes)} classes, but data.num_classes is {profile.data.num_classes}"
        )
    return videos


def what_videos_depend_on(profile: Profile, split: str) -> dict[str, Any]:
    """Give everything that decides which clips a split yields, as plain JSON for a result's hash."""
    depends = {"split": split, "data": profile.data.model_dump(mode="json"), "recipe": RECIPE}
    if profile.scene is not None:
        depends["scene"] = profile.scene.model_dump(mode="json", exclude={"videos"})
        depends["videos"] = profile.scene.videos[split]
    return depends
