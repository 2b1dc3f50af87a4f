"""What the paper says, judged by one rule: a difference on the same test videos, and all that it varies with.

Videos vary, and so do the trainings of the clip networks and, within each, the seeds of stage 2. Let d[t, v] be the
difference of training t on video v, its mean over seeds; a the variance of the trainings' means / T, b that of the
videos' means / V, and c, which both contain, the mean square of their interaction / (T V). The mean's variance is then
a + b - c, and half of the 95 % interval is the greater of q(T - 1) √a and q(V - 1) √(a + b - c), q being Student's
quantiles. Where there is one training, seeds take the place of trainings, and nothing is decided.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # Student's t: of scipy.stats, which takes a second to import

from faster_lib.data.index import videos_key
from faster_lib.paths import PARAMS
from faster_lib.profiles import load_profile
from faster_lib.report.tables import Table, values
from faster_lib.training.features import FeaturePair
from faster_lib.training.results import Cell, aggregator_entry, learns, read_measured, shipped_results
from faster_lib.training.stage1 import name_backbone

COLUMNS = ("statement", "source", "difference", "uncertainty", "over", "margin", "p", "verdict")
_IN_POINTS = "The paper's statements, in percentage points of video@1 at this scale; ± is half a 95 % interval"


@dataclass(frozen=True)
class Claim:
    """What was found of one statement of the paper, in percentage points."""

    statement: str
    source: str
    difference: float  # of the two accuracies, the claimed winner's first
    uncertainty: float  # half of the 95 % interval
    units: Mapping[str, int]  # what the interval is over, such as trainings, seeds and videos, and how many
    margin: float = 0.0  # by how much the first may fall behind and the claim still hold; 0 for "beats"
    p: float = math.nan  # the level at which the interval would end at -margin

    @property
    def over(self) -> str:
        """Say what the interval is over."""
        return ", ".join(f"{count} {unit}s" if count > 1 else f"one {unit}" for unit, count in self.units.items())

    @property
    def verdict(self) -> str:
        """Judge by the stated rule: the whole interval above -margin, below it, or across; nothing by one unit."""
        if alone := [unit for unit, count in self.units.items() if count == 1]:
            return f"undecided: one {alone[0]}"
        if self.difference - self.uncertainty > -self.margin:
            return "holds"
        return "does not hold" if self.difference + self.uncertainty < -self.margin else "undecided within the spread"


@dataclass(frozen=True)
class Side:
    """One way of classifying test videos, as a claim compares it."""

    videos: str  # the key of these videos
    marks: Mapping[str, np.ndarray]  # of each training, by its profile: (seeds, videos), 1 where a video is right
    learns: bool = True  # whether stage 2 trains anything, so that seeds differ

    @property
    def percents(self) -> list[float]:
        """Give video@1 of each training and seed, 0 to 100."""
        return [100 * share for marks in self.marks.values() for share in marks.mean(axis=1).tolist()]


def marks_of(results: Sequence[Any]) -> np.ndarray:
    """Give the marks of a cell's results, a row a seed."""
    return np.array([list(marks) for marks in values(results, "correct")], float)


def find_sides(pair: FeaturePair, cells: Iterable[Cell], *, seeds: Sequence[int], split: str) -> dict[Cell, Side]:
    """Collect what is known of cells, in runs/ or with the kit, and of further trainings of the same networks.

    Those are the profiles `<name>_1`, `<name>_2` and so on. Nothing is trained: a training that lacks a seed of a cell
    has no part in it, and a cell that no training has is left out.
    Raises: ValueError if such a profile has other test videos.
    """
    profile, cells = pair.profile, list(cells)
    pairs, names = [pair], [each.name for each in (pair.expensive, pair.cheap)]
    twins = {path.stem for path in PARAMS.glob("*.yaml") if re.fullmatch(rf"{profile.name}_\d+", path.stem)}
    for twin in map(load_profile, sorted(twins)):
        networks = (name_backbone(twin, name, pair.clip_frames, runs=pair.runs) for name in names)
        pairs.append(FeaturePair(twin, *networks, runs=pair.runs))
    keys = {each.profile.name: videos_key(each.profile, split, runs=pair.runs) for each in pairs}
    if len(set(keys.values())) > 1:
        raise ValueError(f"the profiles have test videos {keys}; they must be the same")
    sides = {cell: Side(keys[profile.name], {}, learns(cell)) for cell in cells}
    for each, (cell, side) in itertools.product(pairs, sides.items()):
        entries = [aggregator_entry(each, *cell, seed, split) for seed in (seeds if side.learns else [0])]
        known = [read_measured(e) if e.is_complete else shipped_results().get(e.path.name) for e in entries]
        if None not in known:
            side.marks[each.profile.name] = marks_of(known)
    return {cell: side for cell, side in sides.items() if side.marks}


def shared(sides: Iterable[Side]) -> list[Side]:
    """Leave to several conditions, such as ratios or lengths, those trainings that all of them have."""
    sides = list(sides)
    names = [name for name in sides[0].marks if all(name in side.marks for side in sides)]
    return [replace(side, marks={name: side.marks[name] for name in names}) for side in sides]


def average(sides: Sequence[Side], weights: Sequence[float] | None = None) -> Side:
    """Average several conditions over the trainings that have them all."""
    sides = shared(sides)
    marks = {k: np.average([each.marks[k] for each in sides], axis=0, weights=weights) for k in sides[0].marks}
    return replace(sides[0], marks=marks)


def at_cost(curve: Mapping[float, Side], cost: float) -> Side | None:
    """Give what a way of classifying reaches at a cost, on the straight line between two of its points.

    Points count that are better than all cheaper ones, since nobody has to spend all. None outside of the points.
    """
    frontier, best = [], -math.inf
    for x, side in sorted(curve.items()):
        if (share := float(np.mean([marks.mean() for marks in side.marks.values()]))) > best:
            frontier, best = [*frontier, x], share
    if not min(curve) <= cost <= max(curve):
        return None
    below, above = max(x for x in frontier if x <= cost), min((x for x in frontier if x > cost), default=math.inf)
    weight = (cost - below) / (above - below)  # 0 where nothing above is better
    return average([curve[below], curve.get(above, curve[below])], [1 - weight, weight])


def judge(statement: str, source: str, first: Sequence[Side], second: Sequence[Side], *, margin: float = 0.0) -> Claim:
    """Compare two ways of classifying the same test videos, over one or several conditions (ratios, lengths).

    Raises: ValueError if the two have not been tried under equally many conditions, or not on the same videos.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} conditions against {len(second)}; there must be as many, and at least one")
    if len(keys := {side.videos for side in (*first, *second)}) > 1:
        raise ValueError(f"{statement}: tested on the videos {' and '.join(sorted(keys))}; they must be the same")
    one, other = average(first), average(second)
    pairs = [(one.marks[name], other.marks[name]) for name in one.marks if name in other.marks]
    seeds = min((len(marks) for marks in sum(pairs, ()) if len(marks) > 1), default=1)  # averaging has none
    gain = 100 * np.array([a[:seeds] - b[:seeds] for a, b in pairs])  # (trainings, seeds, videos)
    units = {"training": len(gain), "seed": seeds if one.learns or other.learns else 0, "video": gain.shape[-1]}
    return conclude(statement, source, gain.mean(), spreads_of(gain), units, margin)


def spreads_of(gain: np.ndarray) -> list[tuple[float, int]]:
    """Give the variances of the mean that this module's text derives, each with its number of units.

    Shape: gain (trainings, seeds, videos)
    """
    gain = gain.mean(axis=1) if len(gain) > 1 else gain[0]
    units, videos = gain.shape
    by_unit, by_video = gain.mean(axis=1, keepdims=True), gain.mean(axis=0)
    b = by_video.var(ddof=1) / videos
    if units == 1:
        return [(b, videos)]
    a, rest = by_unit.var(ddof=1) / units, gain - by_unit - by_video + gain.mean()
    c = (rest**2).mean() / (units - 1) / (videos - 1)
    return [(a, units), (max(a + b - c, 0.0), videos)]


def conclude(
    statement: str, source: str, difference: float, spreads: Sequence[tuple[float, int]], units: dict, margin: float
) -> Claim:
    """Make a claim of a difference whose variance is known in these ways, each from so many units."""
    half, p = 0.0, 0.0
    for variance, number in spreads:
        half = max(half, -stdtrit(number - 1, 0.025) * math.sqrt(variance))
        far = abs(difference + margin) / math.sqrt(variance) if variance else math.inf
        p = max(p, 2 * stdtr(number - 1, -far))
    numbers = round(float(difference), 2), round(float(half), 2)
    claim = Claim(statement, source, *numbers, {unit: n for unit, n in units.items() if n}, margin)
    return claim if claim.verdict.startswith("undecided: ") else replace(claim, p=float(f"{p:.2g}"))


def tabulate(claims: Sequence[Claim], *, command: str, caption: str = _IN_POINTS) -> Table:
    """Show what a notebook found of the paper's statements; it saves the table as `<stem>_claims`."""
    cells = [[getattr(claim, column) for column in COLUMNS] for claim in claims]
    return Table(pd.DataFrame(cells, columns=COLUMNS).set_index("statement"), caption, command)
