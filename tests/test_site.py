"""Tests of docs/conf.py: no page and no notebook is left out of the site, and no folder is read that is not its own."""

import re
import runpy
from fnmatch import fnmatch

from faster_lib.paths import ROOT

CONF = runpy.run_path(str(ROOT / "docs" / "conf.py"))
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def listed() -> set[str]:
    """Give what the front page's lists hold, from the repository's folder."""
    blocks = re.findall(r"```\{toctree\}\n(?::.*\n)*\n([^`]*)```", INDEX)
    lines = [line for block in blocks for line in block.split()]
    return {line.removeprefix("../") if line.startswith("../") else f"docs/{line}" for line in lines}


def test_every_page_and_notebook_is_read_and_stands_in_a_list():
    pages = [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for page in pages:
        name = page.relative_to(ROOT)
        assert any(fnmatch(str(name), pattern) for pattern in CONF["include_patterns"]), name
        is_listed = any(fnmatch(str(name.with_suffix("")), pattern) for pattern in listed())
        assert is_listed or str(name.with_suffix("")) == CONF["root_doc"], name


def test_nothing_is_run_and_folders_without_pages_are_not_searched():
    assert CONF["nb_execution_mode"] == "off"
    own = {"docs", "notebooks", "__pycache__", *(path.name for path in ROOT.glob("*.egg-info"))}
    for path in ROOT.iterdir():
        if path.is_dir() and path.name not in own:
            assert any(fnmatch(path.name, pattern) for pattern in CONF["exclude_patterns"]), path.name


def test_a_section_of_one_line_becomes_a_paragraph_and_text_stays():
    lines = ["Do it.", "", "Shape: (B, N) -> (B)", "Args:", "    x: text", "Raises: ValueError if not."]
    CONF["set_sections_apart"](None, None, None, None, None, lines)
    expected = ["Do it.", "", "", "**Shape:** (B, N) -> (B)", "", "Args:", "    x: text", ""]
    assert lines[:8] == expected and lines[8] == "**Raises:** ValueError if not."
