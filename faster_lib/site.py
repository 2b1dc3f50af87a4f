"""One HTML site out of the notebooks as committed: nothing is run, nothing is fetched, no page holds a script."""

import html
import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import pandas as pd
from jinja2 import DictLoader
from nbconvert import HTMLExporter

from faster_lib.paths import FIGURES, ROOT, RUNS
from faster_lib.report.tables import claims_as_markdown, command, load

log = logging.getLogger(__name__)

# In the paper's order, by the number that begins the name of the notebook and of all that it saves.
ARTEFACTS = {
    "00": "Fig. 1: a few clips are expensive, the rest are cheap",
    "01": "Tables 1 and 2: the clip networks",
    "02": "Table 3: which aggregator?",
    "03": "Fig. 3: FASTER against average pooling as N grows",
    "04": "Table 4: how many clips may be cheap?",
    "05": "Table 5: run time against FLOPs",
    "06": "Table 6: another expensive network",
    "07": "Tables 7 and 8, Fig. 4: the state of the art",
    "08": "Table 8: from one data set to another",
    "09": "What it costs to run a whole profile",
}
ABOUT = """# FASTER kit: the paper beside this repository

A reproducibility kit, in notebooks, for *FASTER Recurrent Networks for Efficient Video
Classification* (AAAI 2020), whose authors published no code. Numbers are *reported* by the paper, *counted* exactly, or
*measured* here on small networks and generated videos; measured ones say nothing about Kinetics.

A count is exact if it equals the printed number once rounded as the paper rounds. Commands are run in the repository's
folder, with `.venv/bin` on the path.

[README](README.html) · [Where the paper's numbers disagree, and what it leaves open](discrepancies.html)
"""
# JupyterLab's look without its scripts, fit for a phone: what is wider than the screen scrolls in a box of its own.
PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>
body.jp-Notebook { overflow: visible; margin: 0; padding: 0; }
main { box-sizing: border-box; max-width: 1100px; margin: 0 auto; padding: 8px 16px 48px; }
nav { padding: 8px 5px 0; font: 14px var(--jp-content-font-family); }
.jp-Cell { padding-left: 0; padding-right: 0; min-width: 0; }
.jp-RenderedHTMLCommon table { display: block; width: max-content; max-width: 100%; margin-left: 0; overflow-x: auto; }
.dataframe th { white-space: nowrap; }
.dataframe td:last-child { min-width: 11em; }
.jp-RenderedHTMLCommon .dataframe :is(tbody th, th:first-child, td:last-child, th:last-child) { text-align: left; }
.jp-RenderedHTMLCommon img { max-width: 100%; height: auto; }
.jp-RenderedHTMLCommon pre, .jp-OutputArea-output pre, .highlight pre { overflow-x: auto; }
.jp-MarkdownOutput .highlight pre { padding: 8px; background: var(--jp-layout-color2); }
</style>{% endblock %}
{% block body_header %}{{ super() }}{{ resources.way_home }}{% endblock %}
"""


def build(out: Path, *, root: Path = ROOT, figures: Path = FIGURES) -> Path:
    """Write a page for each notebook and Markdown file into the folder `out`, and return the front page to them."""
    sources = [path for glob in ("notebooks/*.ipynb", "docs/*.md", "*.md") for path in sorted(root.glob(glob))]
    pages = {source.resolve(): f"{source.stem}.html" for source in sources}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for source, name in pages.items():
        page = _render(_read(source), way_home='<nav><a href="index.html">← All results</a></nav>')
        (out / name).write_text(_relink(page, source, pages, root.resolve(), out), encoding="utf-8")
    for path in [path for number in ARTEFACTS for path in figures.glob(f"{number}_*.*")]:
        shutil.copyfile(path, out / "figures" / path.name)
    sections = {number: _section(number, root, figures) for number in ARTEFACTS}
    overview = [f"| [{title}](#{number}) | {sections[number][1]} |" for number, title in ARTEFACTS.items()]
    overview = "\n".join(["| of the paper | cells |", "| --- | --- |", *overview])
    claims = claims_as_markdown(folder=figures) if any(figures.glob("*_claims.csv")) else "Not run yet."
    claims = f"## What the paper says, and what came out\n\n{claims}"
    cells = [ABOUT, overview, *(text for text, _ in sections.values()), claims]
    front = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in cells])
    (out / "index.html").write_text(_render(front, way_home=""), encoding="utf-8")
    return out / "index.html"


def _section(number: str, root: Path, figures: Path) -> tuple[str, str]:
    """Write what the front page says of an artefact, in Markdown, and the counts of its cells."""
    notebook = next(iter(sorted(root.glob(f"notebooks/{number}_*.ipynb"))), None)
    title = f"[{ARTEFACTS[number]}]({notebook.stem}.html)" if notebook else ARTEFACTS[number]
    parts = [f'<a id="{number}"></a>\n\n## {title}']
    if notebook is None or not all(cell.execution_count for cell in _read(notebook).cells if cell.cell_type == "code"):
        parts.append("*The notebook is not run yet.*")
    commands, counts = [], Counter()
    stems = {path.stem for kind in ("csv", "png") for path in figures.glob(f"{number}_*.{kind}")}
    for stem in sorted(stems, key=lambda stem: [(word, int(n or 0)) for word, n in re.findall(r"(\D+)(\d*)", stem)]):
        if stem.endswith("_claims"):
            continue
        frame, about = load(stem, folder=figures) if (figures / f"{stem}.csv").is_file() else (pd.DataFrame(), {})
        parts.append(_show(stem, frame, about, has_figure=(figures / f"{stem}.png").is_file()))
        commands += [about["command"]] if "command" in about else []
        counts.update(status.split(":")[0] for status in frame.get("status", ()))
    commands = list(dict.fromkeys(commands)) or ([command(notebook.stem)] if notebook else [])
    parts += ["```bash\n" + "\n".join(commands) + "\n```"] if commands else []
    return "\n\n".join(parts), _said(counts) or ("see below" if stems else "not run yet")


def _show(stem: str, frame: pd.DataFrame, about: Mapping[str, Any], *, has_figure: bool) -> str:
    """Show a figure, how many cells agree, the reported numbers beside ours, and where ours come from."""
    caption = about.get("caption", stem)
    parts = [f"### {caption}"]
    if has_figure:
        parts.append(f'<a href="figures/{stem}.png"><img src="figures/{stem}.png" alt="{html.escape(caption)}"></a>')
    if not frame.empty:
        parts += [_said(Counter(frame.get("status", ()))), *_compact(frame)]
        known = {key: about[key] for key in ("profile", "seeds", "device", "seconds", "commit") if about.get(key)}
        origin = "".join(f"; {key} {str(value).strip('[]')}" for key, value in known.items())
        parts.append(f"[All cells as CSV](figures/{stem}.csv){origin}")
    return "\n\n".join(parts)


def _compact(frame: pd.DataFrame) -> list[str]:
    """Make one table for each quantity that the paper reports, the spread beside the mean, without empty columns."""
    form = {"na_rep": "", "float_format": "{:.7g}".format, "border": 0}
    if not {"reported", "counted", "measured", "±", "difference", "status"} <= set(frame.columns):
        return [frame.to_html(**form)]  # a table of its own form
    kept = frame[frame["reported"].notna()] if frame["reported"].notna().any() else frame
    pairs = zip(kept["measured"], kept["±"], strict=True)  # a missing number is not equal to itself
    measured = [f"{m:.1f}{f' ± {s:.2g}' if s == s else ''}" if m == m else None for m, s in pairs]
    kept = kept.assign(measured=measured, status=kept["status"].str.split(":").str[0])
    kept = kept[["reported", "counted", "measured", "difference", "status"]]
    blocks = [(name, block.droplevel(0).dropna(axis=1, how="all")) for name, block in kept.groupby(level=0, sort=False)]
    return [block.rename_axis(None).rename_axis(columns=name).to_html(**form) for name, block in blocks]


def _said(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _read(source: Path) -> nbformat.NotebookNode:
    if source.suffix == ".ipynb":
        return nbformat.read(source, as_version=4)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source.read_text(encoding="utf-8"))])


def _render(notebook: nbformat.NotebookNode, *, way_home: str) -> str:
    """Make one page; its title is the notebook's first line."""
    exporter = HTMLExporter(extra_loaders=[DictLoader({"page.html.j2": PAGE})], template_file="page.html.j2")
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    title = notebook.cells[0].source.split("\n")[0].lstrip("# ")
    return exporter.from_notebook_node(notebook, {"metadata": {"name": title}, "way_home": way_home})[0]


def _relink(page: str, source: Path, pages: Mapping[Path, str], root: Path, out: Path) -> str:
    """Let links to other sources lead to their pages, bring along other files, and drop links that lead nowhere."""

    def replace(match: re.Match) -> str:
        path, hash_, anchor = match["url"].partition("#")
        if not path or re.match(r"[a-z][\w+.-]*:|//|index\.html$", path, re.IGNORECASE):
            return match[0]
        target = (source.parent / unquote(path)).resolve()
        if target not in pages and not (target.is_file() and target.is_relative_to(root)):
            log.warning("%s links to %s, which is not there", source.name, match["url"])
            return ""
        place = pages.get(target) or target.relative_to(root).as_posix()
        if target not in pages:
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, out / place)
        return f'{match["attribute"]}="{place}{hash_}{anchor}"'

    return re.sub(r'\b(?P<attribute>href|src)="(?P<url>[^"]*)"', replace, page)


def main() -> None:
    """Build the site anew in runs/report and say where it is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert warns of every figure without a description
    shutil.rmtree(RUNS / "report", ignore_errors=True)
    log.info("Open %s", build(RUNS / "report"))


if __name__ == "__main__":
    main()
