"""Tables of one form everywhere: reported, counted and measured numbers side by side, difference, status, command."""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from faster_lib import paper
from faster_lib.data.sampling import num_clips_covering
from faster_lib.models.clips import check_clip_frames
from faster_lib.models.faster import Schedule
from faster_lib.paths import FIGURES
from faster_lib.profiles import Profile
from faster_lib.store import circumstances, write_whole

COLUMNS = ("reported", "counted", "measured", "±", "seeds", "difference", "status")


@dataclass(frozen=True)
class Row:
    """One quantity of a comparison, with what is known of it.

    Args:
        quantity: what the numbers are, with the unit, such as "GFLOPs" or "video@1 (%)".
        name: which network, ratio or number of clips.
        reported: the paper's cell, where it has one.
        counted: exact, at the paper's size where `reported` is given.
        rounded: `counted` under the rule by which the paper rounds; this is compared with `reported`.
        measured: one value for each seed, at the scale of the profile that is compared.
        note: what the status says instead of what follows from the numbers; a measured one then has no difference.
    """

    quantity: str
    name: str
    reported: paper.Reported | None = None
    counted: float | None = None
    rounded: float | None = None
    measured: Sequence[float] = ()
    note: str = ""


class Table:
    """A comparison as a reader sees it, in JupyterLab, as HTML and as text: caption, cells, and the command.

    Args:
        frame: the cells, with the columns COLUMNS or a table's own.
        command: makes the table again, as typed in a shell.
    """

    def __init__(self, frame: pd.DataFrame, *, caption: str, command: str):
        self.frame, self.caption, self.command = frame, caption, command

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self.frame.to_string(na_rep='', float_format=_plain)}\n\nmade by: {self.command}"

    def _repr_html_(self) -> str:
        cells = self.frame.to_html(na_rep="", float_format=_plain, border=0)
        return f"<p>{html.escape(self.caption)}</p>{cells}<p>made by: <code>{html.escape(self.command)}</code></p>"


def compare(rows: Sequence[Row], *, profile: Profile, caption: str, command: str) -> Table:
    """Put rows into the one form that all notebooks share; the mean and standard deviation are over seeds.

    A difference is given where both numbers are of the same thing: counted (rounded as printed) less reported, and
    measured less reported where the profile is of the paper's scale.
    """
    cells = {}
    for row in rows:
        if (row.quantity, row.name) in cells:
            raise ValueError(f"the row {row.name!r} of {row.quantity!r} is there twice")
        measured = list(row.measured)
        cells[row.quantity, row.name] = {
            "reported": row.reported.value if row.reported else None,
            "counted": row.counted,
            "measured": float(f"{mean(measured):.4g}") if measured else None,
            "±": round(stdev(measured), 2) if len(measured) > 1 else None,
            "seeds": len(measured) or "",
            "difference": _difference(row, profile),
            "status": _status(row, profile),
        }
    frame = pd.DataFrame.from_dict(cells, orient="index", columns=list(COLUMNS))
    frame.index = pd.MultiIndex.from_tuples(cells, names=["quantity", "of"])
    numbers = [name for name in COLUMNS if name not in ("status", "seeds")]
    return Table(frame.astype(dict.fromkeys(numbers, float)), caption=caption, command=command)


def command(notebook: str, **parameters: Any) -> str:
    """Give the papermill command that runs `notebooks/<notebook>.ipynb` with these parameters."""
    text = {k: v for k, v in parameters.items() if isinstance(v, str | int | float) and not isinstance(v, bool)}
    other = {k: v for k, v in parameters.items() if k not in text}
    plain = "".join(f" -p {name} {value}" for name, value in text.items())
    yaml = f" -y '{json.dumps(other).replace(chr(34), '')}'" if other else ""
    return f"papermill notebooks/{notebook}.ipynb out.ipynb{plain}{yaml}"


def save(
    stem: str,
    figure: Figure | None,
    table: Table,
    *,
    profile: str,
    seeds: Sequence[int],
    seconds: float,
    folder: Path = FIGURES,
) -> None:
    """Write `<stem>.csv`, and the figure as `.png` and `.svg`.

    The CSV begins with where its numbers come from, in lines that start with #: caption, command, profile, seeds,
    seconds of computing, device, versions, commit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if figure is not None:
        with plt.rc_context({"svg.hashsalt": stem}):
            figure.savefig(folder / f"{stem}.png", dpi=150, metadata={"Software": None})
            figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
    about = {"caption": table.caption, "command": table.command, "profile": profile, "seeds": list(seeds)}
    about |= {"seconds": round(seconds), **{k: v for k, v in circumstances().items() if k != "finished"}}
    lines = [f"# {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in about.items()]
    write_whole(folder / f"{stem}.csv", ("".join(lines) + table.frame.to_csv()).encode())


def load(stem: str, *, folder: Path = FIGURES) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table of the one form, and where it comes from, out of `<stem>.csv`.

    Raises: FileNotFoundError if it has not been made yet.
    """
    path = folder / f"{stem}.csv"
    about = {}
    with path.open(encoding="utf-8") as file:
        while (line := file.readline()).startswith("# "):
            key, value = line[2:].split(": ", 1)
            about[key] = json.loads(value)
    frame = pd.read_csv(path, skiprows=len(about))
    return frame.set_index(list(frame.columns[:2])), about


@dataclass(frozen=True)
class Claim:
    """What a notebook found of one statement of the paper; percentage points throughout.

    Args:
        difference: of the two accuracies, the claimed winner's first.
        uncertainty: two standard errors of that difference, over test videos and over seeds.
        margin: by how much the first may fall behind and the claim still hold; 0 for "beats".
    """

    statement: str
    source: str
    difference: float
    uncertainty: float
    margin: float = 0.0

    @property
    def verdict(self) -> str:
        """Judge by the stated rule: the whole interval above -margin, below it, or across."""
        if self.difference - self.uncertainty > -self.margin:
            return "holds"
        return "does not hold" if self.difference + self.uncertainty < -self.margin else "undecided within the spread"


def judge(
    statement: str,
    source: str,
    first: Sequence[Sequence[Mapping[str, Any]]],
    second: Sequence[Sequence[Mapping[str, Any]]],
    *,
    margin: float = 0.0,
) -> Claim:
    """Compare two ways of classifying the same test videos, over one or several conditions.

    Args:
        first, second: for each condition (a ratio, a length), the results of `evaluation.measure`, one a seed.

    Raises: ValueError if the two have not been tried under equally many conditions, or not on the same videos.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} conditions against {len(second)}; there must be as many, and at least one")
    shares, variances = [], []
    for side in (first, second):
        right = [[[float(mark) for mark in result["correct"]] for result in results] for results in side]
        lengths = {len(marks) for results in right for marks in results}
        shares.append([mean(mean(m[v] for m in results) for results in right) for v in range(max(lengths))])
        seeds = min(len(results) for results in right)
        by_seed = [mean(mean(results[s % len(results)]) for results in right) for s in range(seeds)]
        variances.append(stdev(by_seed) ** 2 / seeds if seeds > 1 else 0.0)
    differences = [a - b for a, b in zip(*shares, strict=True)]
    error = math.sqrt(stdev(differences) ** 2 / len(differences) + sum(variances))
    return Claim(statement, source, round(100 * mean(differences), 2), round(200 * error, 2), margin)


def save_claims(
    stem: str,
    claims: Sequence[Claim],
    *,
    command: str,
    caption: str = "The paper's statements, in percentage points of video@1 at this scale",
    folder: Path = FIGURES,
) -> Table:
    """Show what a notebook found of the paper's statements, and keep it in `<stem>_claims.csv`."""
    rows = [
        {
            "statement": claim.statement,
            "source": claim.source,
            "difference": claim.difference,
            "uncertainty": claim.uncertainty,
            "margin": claim.margin,
            "verdict": claim.verdict,
        }
        for claim in claims
    ]
    frame = pd.DataFrame(rows).set_index("statement")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{stem}_claims.csv", frame.to_csv().encode())
    return Table(frame, caption=caption, command=command)


def claims_as_markdown(*, folder: Path = FIGURES) -> str:
    """Join what all notebooks found of the paper's statements into one Markdown table, as the README holds it."""
    paths = sorted(folder.glob("*_claims.csv"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])
    parts = [pd.read_csv(path).assign(notebook=path.stem[:2]) for path in paths]
    lines = ["| the paper says | notebook | difference | verdict at tiny scale |", "| --- | --- | --- | --- |"]
    for claim in pd.concat(parts).itertuples():
        margin = f" (margin {_plain(claim.margin)})" if claim.margin else ""
        number = f"{claim.difference:+.1f} ± {claim.uncertainty:.1f}{margin}"
        lines.append(f"| {claim.statement} ({claim.source}) | {claim.notebook} | {number} | **{claim.verdict}** |")
    return "\n".join(lines) + "\n"


def check_ratios(ratios: Sequence[int], clip_frames: int, profile: Profile) -> dict[int, Schedule]:
    """Turn the ratios 1:x of a study into schedules; an empty list asks for those that Table 4 has at this L.

    Raises: ValueError if L does not fit the profile, `ratios` is no list of whole numbers, or one does not divide N.
    """
    check_clip_frames(clip_frames)
    num_clips = num_clips_covering(profile.data.video_frames, clip_frames)
    if isinstance(ratios, str) or not isinstance(ratios, Sequence):
        raise ValueError(
            f"ratios is {ratios!r}; it must be a list, such as [0, 1, 3] (papermill -y 'ratios: [0, 1, 3]')"
        )
    if len(set(ratios)) < len(ratios):
        raise ValueError(f"ratios is {list(ratios)}; each ratio may stand there once")
    printed = paper.TABLE_4_RATIOS.get(clip_frames, paper.TABLE_4_RATIOS[8])
    wanted = ratios or [x for x in printed if num_clips % (1 + x) == 0]
    return {x: Schedule.ratio(num_clips, x) for x in wanted}


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Raise ValueError unless `seeds` is a list of at least one whole number, each different."""
    return check_whole_numbers("seeds", seeds, least=0)


def check_clip_counts(clips: Sequence[int], clip_frames: int, profile: Profile) -> list[int]:
    """Raise ValueError unless `clips` lists different numbers of clips N, with L x N at most the profile's frames."""
    check_clip_frames(clip_frames)
    most = num_clips_covering(profile.data.video_frames, clip_frames)
    counts = check_whole_numbers("clips", clips, least=1)
    if max(counts) > most:
        raise ValueError(f"clips is {counts}; at L = {clip_frames} a video of this profile has at most {most} clips")
    return counts


def check_lengths(lengths: Sequence[int], profile: Profile) -> dict[int, int]:
    """Give N for each clip length L of a list; ValueError unless L x N is the profile's frames, each L there once."""
    for clip_frames in check_whole_numbers("lengths", lengths, least=1):
        check_clip_frames(clip_frames)
    return {clip_frames: num_clips_covering(profile.data.video_frames, clip_frames) for clip_frames in lengths}


def check_video(video: int, num_videos: int) -> int:
    """Raise ValueError unless `video` is the number of one of a split's videos, the first being 0."""
    if isinstance(video, bool) or not isinstance(video, int) or not 0 <= video < num_videos:
        raise ValueError(
            f"video is {video!r}; it must be a whole number from 0 to {num_videos - 1}, one of the split's"
        )
    return video


def ratio_name(cheap_per_expensive: int) -> str:
    """Name a ratio as Table 4 does."""
    return f"1:{cheap_per_expensive}" if cheap_per_expensive else "All E"


def short(schedule: Schedule) -> str:
    """Write a schedule in at most 16 letters."""
    return str(schedule) if len(schedule) <= 16 else f"{schedule[:13]}..."


def printed_cell(number: int, row: str, column: str) -> paper.Reported | None:
    """Find a cell of the paper; None where that table has no such row or column, or leaves the cell blank."""
    try:
        cell = paper.reported(number, row, column)
    except KeyError:
        return None
    return None if cell.value is None else cell


def check_whole_numbers(name: str, values: Sequence[int], *, least: int) -> list[int]:
    """Raise ValueError unless a list holds at least one whole number, each different and none below `least`."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name} is {values!r}; it must be a list of whole numbers, such as [0, 1, 2]")
    if any(isinstance(value, bool) or not isinstance(value, int) or value < least for value in values):
        raise ValueError(f"{name} is {list(values)}; each must be a whole number of at least {least}")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} is {list(values)}; one that stands there twice would count twice")
    return list(values)


def _difference(row: Row, profile: Profile) -> float | None:
    if row.reported is None or row.reported.value is None:
        return None
    if row.rounded is not None:
        return round(row.rounded - row.reported.value, 4)
    if row.measured and profile.is_paper_scale and not row.note:
        return round(mean(row.measured) - row.reported.value, 2)
    return None


def _status(row: Row, profile: Profile) -> str:
    if row.note:
        return row.note
    if row.reported is not None and row.rounded is not None:
        why = paper.DISCREPANCIES.get((row.reported.table, row.reported.row, row.reported.column), "not explained")
        return "exact" if row.rounded == row.reported.value else f"differs: {why}"
    if row.measured:
        return f"measured at {profile.name} scale"
    return "counted" if row.counted is not None else "not run: needs Kinetics"


def _plain(value: float) -> str:
    return f"{value:.7g}"
