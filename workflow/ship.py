"""Train the clip networks that come with the repository: by their manifest's commands, compared, and replaced.

    python workflow/ship.py --profile study

Each network is trained by the command that `params/weights/manifest.json` will name. An interrupted run goes on; for a
run from nothing, remove runs/retrain first.
"""

import argparse
import hashlib
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load

from faster_lib.data.datasets import num_clips_covering
from faster_lib.models.faster import Schedule
from faster_lib.paths import ROOT, RUNS, WEIGHTS
from faster_lib.profiles import Profile, load_profile
from faster_lib.store import read_manifest, write_whole
from faster_lib.training.evaluation import accuracy_percent, measure_all
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import name_backbone, train_backbone

log = logging.getLogger(__name__)


def pairs_of(profile: Profile, lengths: Sequence[int]) -> list[tuple[str, str, int]]:
    """List the pairs (expensive, cheap, L) to be shipped: the profile's at each L, and R3D-50 where it was before."""
    expensive, cheap = profile.networks.expensive, profile.networks.cheap
    before = " ".join(shipped_commands(profile))
    others = [("r3d_50", cheap, L) for L in lengths if f" r3d_50 -L {L} " in before]
    return [*others, *((expensive, cheap, L) for L in lengths)]


def shipped_commands(profile: Profile) -> list[str]:
    """Give the commands that made a profile's shipped networks."""
    return [about["command"] for about in read_manifest().values() if about["profile"] == profile.name]


def trained_in(profile: Profile) -> Profile:
    """Give the profile by which the networks of a profile are trained: its own, or the one that it names."""
    other = profile.networks.trained_in
    return profile if other is None else load_profile(other)


def folds_of(profile: Profile) -> list[Profile]:
    """Give the profile on each of its set's three splits, or alone where the set has none."""
    return [profile] if profile.data.fold is None else [profile.in_fold(fold) for fold in (1, 2, 3)]


def training_command(profile: Profile, network: str, clip_frames: int, folder: str) -> str:
    """Give the command that trains one network anew in a folder of its own, the shipped one left aside."""
    fold = "" if profile.data.fold is None else f" --fold {profile.data.fold}"
    options = f"--profile {profile.name}{fold} --backbone {network} -L {clip_frames} --threads 1 --anew {folder}"
    return f"python workflow/train.py {options}"


def shipped_lengths(profile: Profile) -> list[int]:
    """Give the clip lengths L for which a profile has shipped networks; those of the paper where it has none."""
    commands = shipped_commands(trained_in(profile))
    return sorted({int(command.split(" -L ")[1].split()[0]) for command in commands}) or [8, 16, 32]


def retrain(profile: Profile, lengths: Sequence[int], *, runs: Path, jobs: int, weights: Path = WEIGHTS) -> None:
    """Train all networks of a profile by their commands, `jobs` at a time, and ship them in place of those before.

    The log says of each whether it is bit-identical to the one shipped before, or how far it is from it.

    Raises: subprocess.CalledProcessError if a training fails; what has been trained stays, and the next run goes on.
    """
    source = trained_in(profile)
    pairs, folds = pairs_of(source, lengths), {each.data.fold: each for each in folds_of(source)}
    networks = [(fold, pair[place], pair[2]) for place in (0, 1) for fold in folds for pair in pairs]  # slow ones first
    folder = runs.relative_to(ROOT).as_posix() if runs.is_relative_to(ROOT) else str(runs)
    commands = {(fold, name, L): training_command(folds[fold], name, L, folder) for fold, name, L in networks}
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(_run, commands.values()))
    accuracies = {each.data.fold: _measure(each, pairs, runs) for each in folds_of(profile)}
    weights.mkdir(parents=True, exist_ok=True)
    manifest = {key: about for key, about in read_manifest(weights).items() if about["profile"] != source.name}
    for (fold, name, L), command in commands.items():
        entry = name_backbone(folds[fold], name, L, runs=runs).entry
        content = entry.read()
        log.info("%s: %s", entry.path.name, compare_weights(content, weights / f"{entry.path.name}.safetensors"))
        write_whole(weights / f"{entry.path.name}.safetensors", content)
        manifest[entry.path.name] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "command": command,
            "profile": source.name,
            "accuracy": {"profile": profile.name, **accuracies[fold][name, L]},
            **{key: entry.record[key] for key in ("measures", "device", "versions", "commit", "finished")},
        }
    write_whole(weights / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    for path in weights.glob("*.safetensors"):
        if path.stem not in manifest:
            path.unlink()


def compare_weights(content: bytes, shipped: Path) -> str:
    """Say how new weights differ from a shipped file."""
    if not shipped.is_file():
        return "new, nothing was shipped for this profile and recipe"
    if shipped.read_bytes() == content:
        return "bit-identical to the shipped one"
    new, old = load(content), load(shipped.read_bytes())
    far = max((new[key].float() - old[key].float()).abs().max().item() for key in old)
    return f"differs from the shipped one, by at most {far:.3g} in a weight"


def _run(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "python", command
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


@torch.inference_mode()
def score_clips(pair: FeaturePair, letter: str, split: str) -> torch.Tensor:
    """Give the logits of every clip by the expensive (E) or cheap (C) network: (videos, N, num_classes)."""
    features, num_clips = pair.open(split), pair.num_clips
    network = {"E": pair.expensive, "C": pair.cheap}[letter].network
    videos = torch.arange(len(features.targets)).split(1)
    each = ((video, 0 * video, torch.arange(num_clips)[None]) for video in videos)
    maps = features.read_each(each, [Schedule(letter * num_clips)])
    return torch.stack([network.classify(torch.cat(of_video)) for (of_video,) in maps])


def clip_percent(pair: FeaturePair, letter: str, split: str) -> float:
    """Give the share of single clips, 0 to 100, that the expensive (E) or cheap (C) network classifies right."""
    logits = score_clips(pair, letter, split)
    return accuracy_percent(logits.flatten(0, 1), pair.open(split).targets.repeat_interleave(pair.num_clips))


def _measure(profile: Profile, pairs: Sequence[tuple[str, str, int]], runs: Path) -> dict[tuple[str, int], dict]:
    """Score each network on the test videos: the mean of all clips' scores, and single clips."""
    found = {}
    for expensive, cheap, L in pairs:
        networks = [train_backbone(profile, name, L, runs=runs) for name in (expensive, cheap)]
        num_clips = num_clips_covering(profile.data.video_frames, L)
        cells = {name: ("avg_pool", Schedule(letter * num_clips)) for name, letter in ((expensive, "E"), (cheap, "C"))}
        pair = FeaturePair(profile, *networks, runs=runs)
        results = measure_all(pair, cells.values(), seeds=[0], split="test", anew=True)
        for name, cell in cells.items():
            found[name, L] = {"split": "test", "clips": num_clips, "video@1 of averaging": results[cell][0].video1}
            found[name, L]["clip@1"] = round(clip_percent(pair, cell[1][0], "test"), 2)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a profile's networks anew and ship them: `params/weights/`, with their manifest."""
    parser = argparse.ArgumentParser(prog="python workflow/ship.py", description=main.__doc__)
    parser.add_argument("--profile", default="study", help="a file in params/")
    parser.add_argument("--lengths", type=int, nargs="+", help="frames per clip; those shipped unless given")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, one thread each")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.jobs)
    profile = load_profile(given.profile)
    retrain(profile, given.lengths or shipped_lengths(profile), runs=RUNS / "retrain", jobs=given.jobs)


if __name__ == "__main__":
    main()
