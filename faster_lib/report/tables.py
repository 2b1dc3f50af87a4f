"""Tables of one form: reported, counted and measured numbers side by side, and what a study is asked for."""

import html
import json
import math
import operator
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from faster_lib import paper
from faster_lib.data.datasets import num_clips_covering
from faster_lib.data.index import load_videos, videos_key
from faster_lib.models.clips import check_clip_frames
from faster_lib.models.faster import Schedule
from faster_lib.paths import FIGURES, RUNS
from faster_lib.profiles import Profile
from faster_lib.provenance import circumstances
from faster_lib.store import write_whole
from faster_lib.training.evaluation import Cell
from faster_lib.training.features import FeaturePair

COLUMNS = ("reported", "counted", "measured", "±", "runs", "difference", "status")
# As the paper writes the networks and the aggregators.
NAMES = {"r2d_26": "R2D-26", "r2plus1d_50": "R(2+1)D-50", "r3d_50": "R3D-50"}
NAMES |= {"avg_pool": "Avg. pool", "concat": "Concat", "lstm": "LSTM", "gru": "GRU", "fast_gru": "FAST-GRU"}
NAMES |= {"mean": "Learned mean"}  # a control of ours
Results = Mapping[Cell, Sequence[Any]]  # what `measure_all` gives, to be read by `values`


def values(results: Sequence[Any], what: str) -> list[Any]:
    """Give one value for each seed of what was measured, such as video1, macro_f1, correct or census."""
    return [getattr(result, what) for result in results]


@dataclass(frozen=True)
class Row:
    """One quantity of a comparison, with what is known of it."""

    quantity: str  # what the numbers are, with the unit, such as "GFLOPs" or "video@1 (%)"
    name: str  # which network, ratio or number of clips
    reported: paper.Reported | None = None  # the paper's cell, where it has one
    counted: float | None = None  # exact, at the paper's size where `reported` is given
    rounded: float | None = None  # `counted` under the rule by which the paper rounds; compared with `reported`
    measured: Sequence[float] = ()  # one value for each run (training and seed), at the scale of the profile
    note: str = ""  # replaces the status that follows from the numbers; a measured row then has no difference


@dataclass(frozen=True, repr=False)
class Table:
    """A comparison as a reader sees it, in JupyterLab, as HTML and as text: caption, cells, and the command.

    Empty columns are not shown, and the numbers of one quantity have equally many decimals; `frame` has all as it is.
    """

    frame: pd.DataFrame  # the cells, with the columns COLUMNS or a table's own
    caption: str
    command: str  # makes the table again, as typed in a shell

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self._shown().to_string()}\n\nmade by: {self.command}"

    def _repr_html_(self) -> str:
        caption, command = html.escape(self.caption), html.escape(self.command)
        return f"<p>{caption}</p>{self._shown().to_html(border=0)}<p>made by: <code>{command}</code></p>"

    def _shown(self) -> pd.DataFrame:
        shown = self.frame.loc[:, ~(self.frame.isna() | (self.frame == "")).all()].copy()
        groups = {"level": "quantity"} if "quantity" in shown.index.names else {"by": [0] * len(shown)}
        for column in shown.select_dtypes("number"):
            shown[column] = shown[column].groupby(**groups).transform(_align)
        return shown


def _align(numbers: pd.Series) -> pd.Series:
    """Write numbers with the decimals of the one that needs most, none having more than 7 digits."""
    decimals = max((len(f"{number:.7g}".partition(".")[2]) for number in numbers.dropna()), default=0)
    return numbers.map(lambda number: "" if pd.isna(number) else f"{number:.{decimals}f}")


def compare(rows: Sequence[Row], *, profile: Profile, caption: str, command: str) -> Table:
    """Put rows into the one form that all notebooks share; the mean and standard deviation are over runs.

    A difference is given where both numbers are of the same thing: counted (rounded as printed) less reported, and
    measured less reported where the profile is of the paper's scale.
    """
    cells = [(row.quantity, row.name, *_cells_of(row, profile)) for row in rows]
    frame = pd.DataFrame(cells, columns=["quantity", "of", *COLUMNS]).set_index(["quantity", "of"])
    if frame.index.has_duplicates:
        raise ValueError(f"the row {frame.index[frame.index.duplicated()][0]} is there twice")
    return Table(frame.astype({name: float for name in COLUMNS if name not in ("status", "runs")}), caption, command)


def _cells_of(row: Row, profile: Profile) -> tuple:
    """Give a row's cells in the order of COLUMNS."""
    reported, measured = row.reported.value if row.reported else None, mean(row.measured) if row.measured else None
    difference, status = None, "counted" if row.counted is not None else "not run: needs Kinetics"
    if reported is not None and row.rounded is not None:
        difference = round(row.rounded - reported, 4)
        why = paper.DISCREPANCIES.get((row.reported.table, row.reported.row, row.reported.column), "not explained")
        status = f"differs: {why}" if difference else "exact"
    elif measured is not None:
        status = f"measured at {profile.name} scale"
        if reported is not None and profile.is_paper_scale and not row.note:
            difference = round(measured - reported, 2)
    spread = round(stdev(row.measured), 2) if len(row.measured) > 1 else None
    shown = None if measured is None else float(f"{measured:.4g}")
    return reported, row.counted, shown, spread, len(row.measured) or "", difference, row.note or status


def command(notebook: str, **parameters: Any) -> str:
    """Give the papermill command that runs `notebooks/<notebook>.ipynb` with these parameters."""
    other = {k: v for k, v in parameters.items() if isinstance(v, bool) or not isinstance(v, str | int | float)}
    plain = "".join(f" -p {name} {value}" for name, value in parameters.items() if name not in other)
    yaml = f" -y '{json.dumps(other).replace(chr(34), '')}'" if other else ""
    return f"papermill notebooks/{notebook}.ipynb out.ipynb{plain}{yaml}"


def save(
    stem: str, figure: Figure | None, table: Table, *, made: Sequence[str] = (), folder: Path = FIGURES, **origin: Any
) -> None:
    """Write the figure as `<stem>.png` and `.svg`, and `<stem>.csv`, which begins with where its numbers come from.

    Args:
        made: by which commits, on what and when those results were made that come with the kit, as `made_of` says.
        origin: the profile, the seeds and the seconds that it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if figure is not None:
        with plt.rc_context({"svg.hashsalt": stem}):
            figure.savefig(folder / f"{stem}.png", dpi=150, metadata={"Software": None})
            figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
    about = {"caption": table.caption, "command": table.command, **origin, "seconds": round(origin["seconds"])}
    about |= {"shipped results": list(made)} if made else {}
    about |= {key: value for key, value in circumstances().items() if key != "finished"}
    lines = [f"# {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in about.items()]
    write_whole(folder / f"{stem}.csv", ("".join(lines) + table.frame.to_csv()).encode())


def rows_of_real_videos(pair: FeaturePair, rows: Sequence[Row], cells: Sequence[Cell], measured: Results) -> list[Row]:
    """Give what rows of video@1 and their cells are to be judged by; nothing for generated videos, which need none.

    That is: macro-F1, accuracy over all listed videos, what always saying the commonest class reaches, and the census.
    """
    if pair.profile.scene is not None:
        return []
    first, found = measured[cells[0]][0], []
    for title, what in (("macro-F1 (%)", "macro_f1"), ("video@1 (% of expected)", "video1_of_expected")):
        named = [replace(row, quantity=row.quantity.replace("video@1 (%)", title), reported=None) for row in rows]
        found += [replace(r, measured=values(measured[cell], what)) for r, cell in zip(named, cells, strict=True)]
    found.append(Row("video@1 (%)", "always the commonest class", counted=round(first.commonest, 2)))
    return found + [Row("videos", key, counted=number) for key, number in asdict(first.census).items()]


def made_of(measured: Results) -> list[str]:
    """Say how those results were made that come with the kit, once for all that were made alike."""
    return sorted({run.made for runs in measured.values() for run in runs if run.made})


def seconds_of(pair: FeaturePair, measured: Results) -> float:
    """Add up what the training of the pair and of all cells took, whenever that was."""
    cells = sum(sum(values(results, "seconds")) for results in measured.values())
    return pair.expensive.seconds + pair.cheap.seconds + cells


def printed_cell(number: int, row: str, column: str) -> paper.Reported | None:
    """Find a cell of the paper; None where that table has no such row or column, or leaves the cell blank."""
    return {(cell.row, cell.column): cell for cell in paper.table(number) if cell.value is not None}.get((row, column))


def ratio_name(cheap_per_expensive: int) -> str:
    """Name a ratio as Table 4 does."""
    return f"1:{cheap_per_expensive}" if cheap_per_expensive else "All E"


def check_run(profile: Profile, *splits: str) -> None:
    """Raise, before anything is trained, unless the videos have these splits and results and figures can be written."""
    for split in splits:
        _ = videos_key(profile, split) if profile.scene else load_videos(profile, split)
    for folder, variable in ((RUNS, "FASTER_RUNS"), (FIGURES, "FASTER_FIGURES")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OSError(f"{folder} cannot be written ({error.strerror}); name another by {variable}") from error


def check_live(live: Results, known: Results, *, most_percent: float = 5.0) -> str:
    """Say in how many test videos cells trained here differ from the same cells as the kit ships them.

    Raises: ValueError, with both accuracies, where they are more than rounding on other processors explains.
    """
    for cell, runs in live.items():
        for mine, other in zip(runs, known[cell], strict=False):
            differ, videos = sum(map(operator.ne, mine.correct, other.correct)), len(mine.correct)
            if differ > most_percent / 100 * videos or videos != len(other.correct):
                both = f"video@1 is {mine.video1:.2f} as trained here, {other.video1:.2f} as kept"
                raise ValueError(f"{cell}: {both}, and {differ} of {videos} videos differ")
    return f"trained here: {differ} of {videos} videos differ from what the repository holds"


def check_ratios(ratios: Sequence[int], clip_frames: int, profile: Profile) -> dict[int, Schedule]:
    """Turn the ratios 1:x of a study into schedules, or raise ValueError; none asks for those of Table 4 at this L."""
    check_clip_frames(clip_frames)
    num_clips = num_clips_covering(profile.data.video_frames, clip_frames)
    printed = paper.TABLE_4_RATIOS.get(clip_frames, paper.TABLE_4_RATIOS[8])
    fitting = [x for x in printed if num_clips % (1 + x) == 0]
    wanted = fitting if ratios == [] else check_whole_numbers("ratios", ratios, least=0)
    return {x: Schedule.ratio(num_clips, x) for x in wanted}


def check_whole_numbers(name: str, numbers: Sequence[int], *, least: int, most: float = math.inf) -> list[int]:
    """Raise ValueError unless a list holds at least one whole number, each different and none out of bounds."""
    if isinstance(numbers, str) or not isinstance(numbers, Sequence) or not numbers:
        raise ValueError(f"{name} is {numbers!r}; it must be a list of whole numbers, such as [0, 1, 2]")
    if any(isinstance(each, bool) or not isinstance(each, int) or not least <= each <= most for each in numbers):
        bound = f" and at most {most}" if most < math.inf else ""
        raise ValueError(f"{name} is {list(numbers)}; each must be a whole number of at least {least}{bound}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} is {list(numbers)}; each number may stand there once")
    return list(numbers)
