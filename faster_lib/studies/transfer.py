"""Table 8: pre-trained on one data set, fine-tuned on another, the mean over its three official splits."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from faster_lib import paper, sota
from faster_lib.models.faster import Schedule
from faster_lib.profiles import Profile
from faster_lib.report.figures import Figure, Panel, Series, draw_panels
from faster_lib.report.tables import Claim, Row, check_whole_numbers, judge, printed_cell
from faster_lib.studies.points import scale_of, video1, video_mflops
from faster_lib.training.evaluation import measure_all
from faster_lib.training.features import FeaturePair

Runs = Sequence[Mapping[str, Any]]  # one for each seed
Folds = Mapping[int, Mapping[str, Runs]]  # what was measured in each fold, by name
_NAMES = {"ucf101": "UCF-101", "hmdb51": "HMDB-51"}  # as Table 8 writes them
_LOOKS = {"pre-trained": "FAST-GRU", "anew": "FAST-GRU, started anew"}  # in the figure, by how it starts
_ASIDE = (-0.2, -0.1, 0.0, 0.1, 0.2)  # of a fold, so that no mark of the figure hides another
_MIX, _ALL_E, _ALL_C = _AVERAGES = ("average of the same mix", "average, all expensive", "average, all cheap")


def check_folds(folds: Sequence[int], profile: Profile) -> dict[int, Profile]:
    """Give the profile in each fold of a list.

    Raises: ValueError if the list or a fold is wrong, or if the profile has no pre-training.
    """
    if profile.pretraining is None:
        raise ValueError(f"the profile {profile.name!r} has no pretraining; choose one that has, such as tiny_ucf101")
    return {fold: profile.in_fold(fold) for fold in check_whole_numbers("folds", folds, least=1)}


def check_epochs(epochs: Sequence[int], profile: Profile) -> list[int]:
    """Give the numbers of epochs of stage 2 that are tried, fewest first: those of a list and the profile's.

    Raises: ValueError if the list is wrong.
    """
    given = check_whole_numbers("epochs", epochs, least=1) if epochs != [] else []
    return sorted({*given, profile.aggregator_training.epochs})


def measure_transfer(
    pair: FeaturePair, schedule: Schedule, *, epochs: Sequence[int], seeds: Sequence[int]
) -> dict[str, Runs]:
    """Measure one fold: FAST-GRU pre-trained or started anew, each after some numbers of epochs, and averaging.

    Both go with the same fine-tuned networks.
    """
    averages = {_MIX: schedule, _ALL_E: Schedule("E" * len(schedule)), _ALL_C: Schedule("C" * len(schedule))}
    cells = {name: ("avg_pool", pattern) for name, pattern in averages.items()}
    measured = measure_all(pair, cells.values(), seeds=seeds, split="test")
    found = {}
    for start in _LOOKS:
        for count in epochs:
            learning = pair.profile.aggregator_training.model_copy(update={"epochs": count})
            changes = {"aggregator_training": learning, **({"pretraining": None} if start == "anew" else {})}
            changed = FeaturePair(pair.profile.model_copy(update=changes), pair.expensive, pair.cheap, runs=pair.runs)
            cell = ("fast_gru", schedule)
            found[fast_gru(start, count)] = measure_all(changed, [cell], seeds=seeds, split="test")[cell]
    return found | {name: measured[cell] for name, cell in cells.items()}


def fast_gru(start: str, epochs: int) -> str:
    """Name what `measure_transfer` gives of FAST-GRU; `start` is pre-trained or anew."""
    return f"FAST-GRU {start}, {epochs} epochs"


def mean_over_folds(measured: Folds, name: str, *, what: str = "video@1") -> list[float]:
    """Average what is measured under a name over the folds, for each seed."""
    return [mean(run[what] for run in runs) for runs in zip(*(fold[name] for fold in measured.values()), strict=True)]


def transfer_rows(pairs: Mapping[int, FeaturePair], schedule: Schedule, measured: Folds) -> list[Row]:
    """Give Table 8's column for the profile's set: as printed, measured in each fold and on average, and the costs."""
    pair = next(iter(pairs.values()))
    column = _NAMES[pair.profile.data.source]
    rows = [row for row in sota.accuracy_rows() if row.quantity.startswith(column)]
    ours = fast_gru("pre-trained", pair.profile.aggregator_training.epochs)
    for name in next(iter(measured.values())):
        rows += [Row(f"video@1 (%), {name}", f"fold {k}", measured=video1(fold[name])) for k, fold in measured.items()]
        is_printed = name == ours and len(measured) == 3 and _is_faster32(pair, schedule)
        cell = printed_cell(8, "FASTER32", f"{column} accuracy") if is_printed else None
        rows.append(Row(f"video@1 (%), {name}", "mean", cell, measured=mean_over_folds(measured, name)))
    if pair.profile.scene is None:
        rows += _rows_of_what_was_read(measured, ours)
    costs = {"FAST-GRU": ("fast_gru", schedule), _MIX: ("avg_pool", schedule)}
    return rows + [Row("MFLOPs, small", name, counted=video_mflops(pair, *cell)) for name, cell in costs.items()]


def draw_transfer(
    pairs: Mapping[int, FeaturePair], schedule: Schedule, epochs: Sequence[int], measured: Folds
) -> Figure:
    """Draw the accuracy in each fold, and the mean over the folds as the epochs of stage 2 grow."""
    pair = next(iter(pairs.values()))
    most = pair.profile.aggregator_training.epochs
    names = {look: fast_gru(start, most) for start, look in _LOOKS.items()} | {name: name for name in _AVERAGES}
    by_fold = [
        _series(look, [k + aside for k in measured], [video1(f[name]) for f in measured.values()], is_joined=False)
        for aside, (look, name) in zip(_ASIDE, names.items(), strict=True)
    ]
    means = {start: [mean_over_folds(measured, fast_gru(start, count)) for count in epochs] for start in _LOOKS}
    by_epochs = [_series(look, epochs, means[start]) for start, look in _LOOKS.items()]
    by_epochs.append(_series(_MIX, epochs, [mean_over_folds(measured, _MIX)] * len(epochs)))
    form = {"ylabel": "video@1 (%)", "is_log": False, "is_legend_below": True}
    panels = [
        Panel(f"{scale_of(pair)}, {most} epochs", "fold", series=by_fold, ticks=[*measured], **form),
        Panel(f"mean over {len(measured)} fold(s)", "epochs of stage 2", series=by_epochs, ticks=epochs, **form),
    ]
    runs = [fold[fast_gru("pre-trained", most)] for fold in measured.values()]
    caption = (
        f"Pre-trained in the profile {pair.profile.pretraining.profile}; "
        f"{sum(first['videos'] for first, *_ in runs)} test videos in {len(runs)} fold(s).\n"
        f"Bars are ± 1 standard deviation over {len(runs[0])} seed(s) of stage 2. Table 8's accuracies, on the real "
        "sets, are drawn in notebook 07."
    )
    clips = f"L = {pair.expensive.clip_frames}, N = {len(schedule)}, {schedule.count('E')} of them expensive"
    return draw_panels(panels, title=f"From one data set to another: {clips}", caption=caption)


def judge_transfer(epochs: Sequence[int], measured: Folds) -> list[Claim]:
    """Test, over the videos of all folds, that an aggregator is better if it has learnt on the larger set before."""
    claims = []
    for count in epochs:
        sides = ([_pooled(measured, fast_gru(start, count))] for start in _LOOKS)
        statement = f"learning the aggregation on a larger set helps on a smaller one, {count} epochs there"
        claims.append(judge(statement, "text on Table 8", *sides))
    return claims


def seconds_of_transfer(pairs: Mapping[int, FeaturePair], measured: Folds) -> float:
    """Add up what fine-tuning and stage 2 took in all folds, the pre-training left aside."""
    first = sum(pair.expensive.seconds + pair.cheap.seconds for pair in pairs.values())
    return first + sum(run["seconds"] for fold in measured.values() for runs in fold.values() for run in runs)


def _rows_of_what_was_read(measured: Folds, name: str) -> list[Row]:
    """Give the accuracy over all videos that the lists name, and how many of them could be read."""
    of_expected = mean_over_folds(measured, name, what="video@1 of expected")
    rows = [Row(f"video@1 (% of expected), {name}", "mean", measured=of_expected)]
    for key in ("expected", "used", "missing", "corrupt"):
        rows.append(Row("test videos, all folds", key, counted=sum(fold[name][0][key] for fold in measured.values())))
    return rows


def _pooled(measured: Folds, name: str) -> list[dict[str, str]]:
    """Join the test videos of all folds, for each seed."""
    marks = zip(*([run["correct"] for run in fold[name]] for fold in measured.values()), strict=True)
    return [{"correct": "".join(parts)} for parts in marks]


def _is_faster32(pair: FeaturePair, schedule: Schedule) -> bool:
    """Say whether the clips are those of Table 8; which expensive network it has is the profile's to say."""
    clip_frames, x, _ = sota.VARIANTS["FASTER32"]
    printed = Schedule.ratio(paper.VIDEO_FRAMES // clip_frames, x)
    return pair.profile.is_paper_scale and pair.expensive.clip_frames == clip_frames and schedule == printed


def _series(look: str, x: Sequence[float], runs: Sequence[Sequence[float]], *, is_joined: bool = True) -> Series:
    """Make a line of means over seeds, with the spread."""
    spread = [stdev(values) if len(values) > 1 else 0.0 for values in runs]
    return Series(look, list(x), [mean(values) for values in runs], spread, is_joined=is_joined)
