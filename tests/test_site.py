"""Tests of the site: every link leads somewhere, nothing comes from elsewhere, and what is missing is said to be."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from faster_lib import site
from faster_lib.paper import reported
from faster_lib.paths import ROOT
from faster_lib.profiles import load_profile
from faster_lib.report import tables as report
from faster_lib.report.tables import Row


class Links(HTMLParser):
    """Collects what a page refers to, as (tag, address), its text, and the ids in it."""

    def __init__(self, page: Path):
        super().__init__()
        self.found, self.ids, self.text = [], set(), ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in ("href", "src")]
        self.ids |= {value for name, value in attrs if name == "id"}

    def handle_data(self, data):
        self.text += data


def write_notebook(path: Path, text: str, *, is_run: bool) -> None:
    code = nbformat.v4.new_code_cell("1 + 1", execution_count=1 if is_run else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code]), path)


def write_table(figures: Path) -> None:
    """A figure and a table with an exact cell, one that differs, one measured, and one that the paper does not have."""
    rows = [
        Row("GFLOPs", "All E", reported(4, "All E", "L=16 gmacs"), 980.94, 980.8),
        Row("GFLOPs", "1:1", reported(4, "1:1", "L=16 gmacs"), 551.93, 552.0),
        Row("video@1 (%)", "1:1", reported(4, "1:1", "L=16 accuracy"), measured=[60.0, 62.0]),
        Row("MFLOPs, small", "1:1", counted=395.5),
    ]
    order = report.command("04_ratio_study", L=16)
    table = report.compare(rows, profile=load_profile("tiny"), caption="Costs & accuracies", command=order)
    figure = plt.figure(figsize=(1, 1))
    about = {"profile": "tiny", "seeds": [0, 1], "seconds": 60}
    report.save("04_ratio_study_tiny_L16", figure, table, **about, folder=figures)
    plt.close(figure)
    frame = pd.DataFrame({"network": ["R2D-26"], "layer": ["res2"], "kernels": ["1×1×1 <64>"]})
    own_form = report.Table(frame.set_index(["network", "layer"]), caption="Table 1", command="papermill")
    report.save("01_backbones_tiny_table_1", None, own_form, **about, folder=figures)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Give the site of a repository with two notebooks, one of them not run, and one table."""
    root = tmp_path_factory.mktemp("root")
    text = "# 4. How many?\n\n[a](../docs/discrepancies.md#b) [c](../params/d.yaml) [e](../f.md) [g](https://h.org)"
    write_notebook(root / "notebooks" / "04_ratio_study.ipynb", text, is_run=True)
    write_notebook(root / "notebooks" / "06_generalization.ipynb", "# 6. Another", is_run=False)
    for name in ("docs/discrepancies.md", "README.md", "params/d.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("# Title\n")
    write_table(root / "figures")
    claim = report.Claim("1:1 loses nothing", "Table 4", -0.4, 0.9, margin=1.0)
    claims = report.tabulate([claim], command="papermill")
    report.save(
        "04_ratio_study_tiny_L16_claims", None, claims, profile="tiny", seeds=[0], seconds=60, folder=root / "figures"
    )
    return site.build(root / "site", root=root, figures=root / "figures").parent


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Give the site of this repository as it stands, with the table above as its only figure."""
    folder = tmp_path_factory.mktemp("full")
    write_table(folder / "figures")
    return site.build(folder / "site", figures=folder / "figures").parent


@pytest.mark.parametrize("which", ["small", "full"])
def test_every_link_and_image_is_there_and_nothing_comes_from_elsewhere(which, request):
    folder = request.getfixturevalue(which)
    pages = {page.name: Links(page) for page in folder.glob("*.html")}
    for name, page in pages.items():
        for tag, address in page.found:
            path, _, anchor = address.partition("#")
            if re.match(r"[a-z]+:", address):
                assert tag == "a" or address.startswith("data:"), f"{name} loads {address[:80]}"
            else:
                assert not path or (folder / unquote(path)).is_file(), f"{name} refers to {address!r}"
                assert path or anchor in page.ids, f"{name} has no {address!r}"
        text = (folder / name).read_text(encoding="utf-8")
        assert "<script" not in text and "@import" not in text, name
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", text), name


def test_every_page_leads_back_to_the_front_page_and_no_page_is_missing(full):
    sources = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]
    assert {path.name for path in full.glob("*.html")} == {"index.html", *(f"{path.stem}.html" for path in sources)}
    for page in full.glob("*.html"):
        assert page.name == "index.html" or ("a", "index.html") in Links(page).found


def test_every_notebook_belongs_to_an_artefact_and_none_holds_latex_which_the_site_cannot_show():
    for path in ROOT.glob("notebooks/*.ipynb"):
        assert path.stem[:2] in site.ARTEFACTS, path.name
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
        prose = re.sub(r"`+[^`]*`+", "", "\n".join(cells))
        assert not re.search(r"\$[^$]+\$|\\begin\{|\\\(", prose), path.name


def test_the_front_page_shows_reported_beside_ours_and_counts_the_cells(small):
    text = " ".join(Links(small / "index.html").text.split())
    assert "1 counted; 1 differs; 1 exact; 1 measured at tiny scale" in text  # in the list of artefacts
    assert "1 differs: 980.2 / 16 has no one-decimal value" in text  # in the artefact's own section
    assert "GFLOPs reported counted difference status All E 980.2 980.94 0.6 differs 1:1 552 551.93 0 exact" in text
    assert "video@1 (%) reported measured status 1:1 72.9 61.0 ± 1.4 measured at tiny scale" in text
    assert "MFLOPs, small" not in text  # the paper has no such number: left to the notebook
    assert "papermill notebooks/04_ratio_study.ipynb out.ipynb -p L 16" in text
    assert "1:1 loses nothing (Table 4) 04 -0.4 ± 0.9 (margin 1) undecided within the spread" in text
    assert "kernels network layer R2D-26 res2 1×1×1 <64> All cells as CSV" in text  # a table of its own form
    assert ("img", "figures/04_ratio_study_tiny_L16.png") in Links(small / "index.html").found


def test_what_has_not_been_run_is_said_so_in_the_papers_order(small):
    text = (small / "index.html").read_text(encoding="utf-8")
    _, *sections = text.split('<a id="0')
    assert [f"0{section[0]}" for section in sections] == list(site.ARTEFACTS)
    assert [section[0] for section in sections if "not run yet" not in section] == ["4"]
    assert "06_generalization.html" in sections[6] and ".html" not in sections[5]


def test_links_between_sources_become_links_between_pages_and_one_to_nowhere_is_dropped(small):
    page = Links(small / "04_ratio_study.html")
    links = [address for tag, address in page.found if tag == "a" and not address.startswith("#")]
    assert links == ["index.html", "discrepancies.html#b", "params/d.yaml", "https://h.org"]
    assert "e" in page.text.split()


def test_a_link_to_nowhere_is_named_in_the_log(tmp_path, caplog):
    write_notebook(tmp_path / "notebooks" / "05_runtime.ipynb", "# 5\n\n[x](y.md)", is_run=True)
    site.build(tmp_path / "site", root=tmp_path, figures=tmp_path / "figures")
    assert "05_runtime.ipynb links to y.md" in caplog.text
