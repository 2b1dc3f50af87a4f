"""Say which part of the class the clip networks tell: `python -m workflow.factors --profile study study_1 -L 8`.

A generated video's class is a motion and a context. All clips of a test video are scored by one network, and the scores
averaged, as all-expensive or all-cheap averaging does.
"""

import argparse
from collections.abc import Sequence

import torch

from faster_lib import load_profile
from faster_lib.data.synthetic import CLASSES
from faster_lib.training.features import FeaturePair
from faster_lib.training.stage1 import train_backbone
from workflow.ship import score_clips


def factor_percents(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Give the shares, 0 to 100, of clips and of videos that are right, and of videos whose motion or tint is.

    Shape: logits of all clips (videos, N, num_classes), targets (videos,)
    """
    said = logits.softmax(-1).mean(1).argmax(-1)
    right = {"clip@1": logits.argmax(-1) == targets[:, None], "video@1": said == targets}
    words = zip(*(label.split("_") for label in sorted(CLASSES)), strict=True)
    for what, of in zip(("motion", "tint"), words, strict=True):
        right[what] = torch.tensor([of[a] == of[b] for a, b in zip(said, targets, strict=True)])
    return {what: 100 * marks.float().mean().item() for what, marks in right.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line for each network: its shares in percent."""
    parser = argparse.ArgumentParser(prog="python -m workflow.factors", description=main.__doc__)
    parser.add_argument("--profile", nargs="+", default=["study"], help="files in params/, of generated videos")
    parser.add_argument("-L", type=int, nargs="+", required=True, help="frames per clip")
    parser.add_argument("--expensive", help="another network in place of the profile's expensive one")
    parser.add_argument("--split", default="test")
    given = parser.parse_args(arguments)
    for L, name in [(L, name) for L in given.L for name in given.profile]:
        if (profile := load_profile(name)).scene is None:
            parser.error(f"the profile {name!r} has real videos, whose class has no such parts")
        names = (given.expensive or profile.networks.expensive, profile.networks.cheap)
        pair = FeaturePair(profile, *(train_backbone(profile, each, L) for each in names))
        for letter, network in zip("EC", names, strict=True):
            logits, targets = score_clips(pair, letter, given.split), pair.open(given.split).targets
            shares = [f"{what} {share:.1f} %" for what, share in factor_percents(logits, targets).items()]
            print(f"{name}, {network}, L = {L}: {', '.join(shares)}")


if __name__ == "__main__":
    main()
