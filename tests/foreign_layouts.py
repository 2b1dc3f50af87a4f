"""Generated videos in the file layouts of the data sets, names, lists and endings included."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np

from faster_lib.data.synthetic import CLASSES, render_video
from faster_lib.data.video import encode_h264
from faster_lib.profile_sections import Scene

FOLDS = (1, 2, 3)
# Of each class, by the fold that tests them; 0 for those that are always for training. Source: the official lists.
UCF101_GROUPS = {0: range(22, 26), 1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}
Videos = Sequence[tuple[str, int]]  # the split, and the number in it
Plan = list[tuple[str, int, int]]  # of each video the path from the root, the class, and what its pixels depend on
Lists = dict[str, str]  # the path from the root of each annotation file, and its text


def write_layout(scene: Scene, layout: str, folder: Path) -> None:
    """Write the scene's train, val and test videos and their lists in a data set's layout.

    UCF-101 and HMDB-51 get `.avi` files of MPEG-4 Part 2, as they come. The test of their first fold is the scene's;
    the other folds test as many of its training videos each. The other layouts get `.mp4` of H.264.
    """
    for path, class_index, seed in plan_layout(scene, layout, folder):
        frames = render_video(CLASSES[class_index], scene, np.random.default_rng([scene.seed, seed]))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".avi":
            path.write_bytes(encode_mpeg4(frames, scene.fps))
        else:
            path.write_bytes(encode_h264(frames, fps=scene.fps, crf=scene.crf, gop_frames=scene.gop_frames))


def plan_layout(scene: Scene, layout: str, folder: Path) -> list[tuple[Path, int, int]]:
    """Write the lists of a layout, and say which videos belong to it: path, class, and what the pixels depend on."""
    videos = [(split, number) for split in ("train", "val", "test") for number in range(scene.videos.get(split, 0))]
    plan, lists = FOREIGN_LAYOUTS[layout](videos)
    for path, text in lists.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())
    return [(folder / path, class_index, seed) for path, class_index, seed in plan]


def encode_mpeg4(frames: np.ndarray, fps: int) -> bytes:
    """Encode frames as MPEG-4 Part 2 in an `.avi`, the form in which UCF-101 and HMDB-51 come."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="avi") as file:
        options = {"qscale": "2", "g": "12", "threads": "1", "flags": "+bitexact"}
        stream = file.add_stream("mpeg4", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def _tested_in(videos: Videos) -> list[int]:
    """Give the fold, 1 to 3, that has each video in its test; 0 for those that are in none's."""
    counts = Counter(split for split, _ in videos)
    assert 0 < 2 * counts["test"] <= counts["train"], "three folds, each with a test of its own"
    first = {"test": 1, "train": 2}  # of the folds that the split's videos fill in turn
    folds = [first.get(split, 0) and first[split] + number // counts["test"] for split, number in videos]
    return [fold if fold in FOLDS else 0 for fold in folds]


def _kinetics(videos: Videos) -> tuple[Plan, Lists]:
    plan, rows = [], {split: ["label,youtube_id,time_start,time_end,split"] for split, _ in videos}
    for seed, (split, number) in enumerate(videos):
        label, key, start = CLASSES[number % len(CLASSES)].replace("_", " "), f"-{seed:07d}_Ab", 3 * number
        rows[split].append(f"{label},{key},{start},{start + 10},{split}")
        plan.append((f"{split}/{label}/{key}_{start:06d}_{start + 10:06d}.mp4", number % len(CLASSES), seed))
    return plan, {f"{split}.csv": "\n".join(lines) + "\n" for split, lines in rows.items()}


def _ucf101(videos: Videos) -> tuple[Plan, Lists]:
    """Lay out the train and test videos; no group of a class is in both lists of a fold, as in the original."""
    names = ["".join(part.title() for part in label.split("_")) for label in CLASSES]
    lists = {"classInd.txt": [f"{c + 1} {name}" for c, name in enumerate(names)]}
    lists |= {f"{split}list{fold:02d}.txt": [] for split in ("train", "test") for fold in FOLDS}
    plan, taken = [], Counter()
    for seed, ((split, number), tested_in) in enumerate(zip(videos, _tested_in(videos), strict=True)):
        if split == "val":
            continue
        c, groups = number % len(CLASSES), UCF101_GROUPS[tested_in]
        clip, group = divmod(taken[c, tested_in], len(groups))
        taken[c, tested_in] += 1
        path = f"{names[c]}/v_{names[c]}_g{groups[group]:02d}_c{clip + 1:02d}.avi"
        plan.append((f"UCF-101/{path}", c, seed))
        for fold in FOLDS:
            name, line = ("test", path) if fold == tested_in else ("train", f"{path} {c + 1}")
            lists[f"{name}list{fold:02d}.txt"].append(line)
    return plan, {f"ucfTrainTestlist/{name}": "\r\n".join(rows) + "\r\n" for name, rows in lists.items()}


def _hmdb51(videos: Videos) -> tuple[Plan, Lists]:
    plan, lists = [], {f"{label}_test_split{fold}.txt": [] for label in CLASSES for fold in FOLDS}
    for seed, ((split, number), tested_in) in enumerate(zip(videos, _tested_in(videos), strict=True)):
        label = CLASSES[number % len(CLASSES)]
        name = f"Clip_(HQ)_+_No.{seed}!_{label}_f_cm_np1_ba_med_0.avi"
        plan.append((f"{label}/{name}", number % len(CLASSES), seed))
        for fold in FOLDS:
            flag = 0 if split == "val" else 2 if fold == tested_in else 1
            lists[f"{label}_test_split{fold}.txt"].append(f"{name} {flag} ")
    return plan, {f"testTrainMulti_7030_splits/{name}": "\n".join(rows) + "\n" for name, rows in lists.items()}


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


FOREIGN_LAYOUTS: dict[str, Callable[[Videos], tuple[Plan, Lists]]] = {
    "kinetics": _kinetics,
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "path_label": _path_label,
    "folders": _folders,
}
