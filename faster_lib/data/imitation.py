"""Generated videos in the file layouts of the data sets, names, lists and endings included: to try the kit with."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from faster_lib.data.synthetic import CLASSES, render_video
from faster_lib.data.video import encode_h264, encode_mpeg4
from faster_lib.profiles import Scene, load_profile
from faster_lib.store import write_whole

Videos = Sequence[tuple[str, int]]  # the split, and the number in it
Plan = list[tuple[str, int, int]]  # of each video the path from the root, the class, and what its pixels depend on
Lists = dict[str, str]  # the path from the root of each annotation file, and its text


def imitate(scene: Scene, layout: str, folder: Path, *, workers: int) -> None:
    """Write the scene's train, val and test videos and their lists in a data set's layout.

    UCF-101 and HMDB-51 get `.avi` files of MPEG-4 Part 2, as they come; their test videos are those of the scene's
    test split, in all three folds. The others get `.mp4` of H.264.

    Raises: ValueError for an unknown layout; FileExistsError if the folder holds something.
    """
    if layout not in IMITATIONS:
        raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(IMITATIONS)}")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a folder that is, or is not there yet")
    videos = [(split, number) for split in ("train", "val", "test") for number in range(scene.videos.get(split, 0))]
    plan, lists = IMITATIONS[layout](videos)
    Parallel(n_jobs=max(workers, 1))(delayed(_write)(folder / path, *rest, scene) for path, *rest in plan)
    for path, text in lists.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / path, text.encode())


def _kinetics(videos: Videos) -> tuple[Plan, Lists]:
    plan, rows = [], {split: ["label,youtube_id,time_start,time_end,split"] for split, _ in videos}
    for seed, (split, number) in enumerate(videos):
        label, key, start = CLASSES[number % len(CLASSES)].replace("_", " "), f"-{seed:07d}_Ab", 3 * number
        rows[split].append(f"{label},{key},{start},{start + 10},{split}")
        plan.append((f"{split}/{label}/{key}_{start:06d}_{start + 10:06d}.mp4", number % len(CLASSES), seed))
    return plan, {f"{split}.csv": "\n".join(lines) + "\n" for split, lines in rows.items()}


def _ucf101(videos: Videos) -> tuple[Plan, Lists]:
    names = ["".join(part.title() for part in label.split("_")) for label in CLASSES]
    plan, lines = [], {"train": [], "test": []}
    for seed, (split, number) in enumerate(videos):
        c = number % len(CLASSES)
        path = f"{names[c]}/v_{names[c]}_g{seed:02d}_c01.avi"
        plan.append((f"UCF-101/{path}", c, seed))
        if split in lines:
            lines[split].append(f"{path} {c + 1}" if split == "train" else path)
    lists = {"classInd.txt": [f"{c + 1} {name}" for c, name in enumerate(names)]}
    lists |= {f"{split}list{fold:02d}.txt": rows for split, rows in lines.items() for fold in (1, 2, 3)}
    return plan, {f"ucfTrainTestlist/{name}": "\r\n".join(rows) + "\r\n" for name, rows in lists.items()}


def _hmdb51(videos: Videos) -> tuple[Plan, Lists]:
    plan, lines = [], {label: [] for label in CLASSES}
    flags = {"train": 1, "val": 0, "test": 2}
    for seed, (split, number) in enumerate(videos):
        label = CLASSES[number % len(CLASSES)]
        name = f"Clip_(HQ)_+_No.{seed}!_{label}_f_cm_np1_ba_med_0.avi"
        plan.append((f"{label}/{name}", number % len(CLASSES), seed))
        lines[label].append(f"{name} {flags[split]} ")
    folder = "testTrainMulti_7030_splits"
    lists = {f"{folder}/{label}_test_split{fold}.txt": rows for label, rows in lines.items() for fold in (1, 2, 3)}
    return plan, {path: "\n".join(rows) + "\n" for path, rows in lists.items()}


def _path_label(videos: Videos) -> tuple[Plan, Lists]:
    plan, lines = [], {split: [] for split, _ in videos}
    for seed, (split, number) in enumerate(videos):
        path = f"{split}/a clip {seed:05d}.mp4"
        plan.append((path, number % len(CLASSES), seed))
        lines[split].append(f"{path} {number % len(CLASSES)}")
    lists = {f"{split}.csv": "\n".join(rows) + "\n" for split, rows in lines.items()}
    return plan, {"classes.txt": "\n".join(CLASSES) + "\n", **lists}


def _folders(videos: Videos) -> tuple[Plan, Lists]:
    plan, lines = [], {split: [] for split, _ in videos}
    for seed, (split, number) in enumerate(videos):
        path = f"{CLASSES[number % len(CLASSES)]}/{seed:05d}.mp4"
        plan.append((path, number % len(CLASSES), seed))
        lines[split].append(path)
    return plan, {f"{split}.txt": "\n".join(rows) + "\n" for split, rows in lines.items()}


IMITATIONS: dict[str, Callable[[Videos], tuple[Plan, Lists]]] = {
    "kinetics": _kinetics,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "path_label": _path_label,
    "folders": _folders,
}


def _write(path: Path, class_index: int, seed: int, scene: Scene) -> None:
    frames = render_video(class_index, scene, np.random.default_rng([scene.seed, seed]))
    is_avi = path.suffix == ".avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = (
        encode_mpeg4(frames, fps=scene.fps)
        if is_avi
        else encode_h264(frames, fps=scene.fps, crf=scene.crf, gop_frames=scene.gop_frames)
    )
    write_whole(path, content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a profile's generated videos in the file layout of a data set."""
    parser = argparse.ArgumentParser(prog="python -m faster_lib.data.imitation", description=main.__doc__)
    parser.add_argument("layout", choices=IMITATIONS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="smoke", help="a file in params/ with a scene")
    given = parser.parse_args(arguments)
    profile = load_profile(given.profile)
    if profile.scene is None:
        raise SystemExit(
            f"params/{profile.name}.yaml has no scene; choose a profile of generated videos, such as smoke"
        )
    imitate(profile.scene, given.layout, given.folder, workers=profile.loading.workers)


if __name__ == "__main__":
    main()
