"""How Sphinx makes the site: `make docs`, without network and without running anything.

The source folder is the repository itself, so that notebooks, README and docs/ are read where they lie, the notebooks
with their committed outputs, and a link that works on GitHub works here. One that leads nowhere fails the build.
"""

import re

from faster_lib.paths import ROOT

project = "FASTER kit"
author = copyright = "The FASTER kit developers"
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/api/*.rst", "notebooks/*.ipynb"]
exclude_patterns = [
    "runs",
    "data",
    ".*",
    "build",
    "dist",
    "params",
    "figures",
    "benchmarks",
    "tests",
    "workflow",
    "faster_lib",
]

extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

apidoc_modules = [{"path": str(ROOT / "faster_lib"), "destination": "docs/api", "max_depth": 2}]
apidoc_separate_modules = True
apidoc_module_first = True
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Units", "params_style")]
autodoc_typehints = "signature"
default_role = "literal"

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "front.html"}
html_copy_source = False


def set_sections_apart(app, what, name, obj, options, lines: list[str]) -> None:
    """Give each section of a docstring a paragraph of its own, also those of one line such as "Shape: ..."."""
    text = re.sub(r"^\w+:(?=\s|$)", r"\n\g<0>", "\n".join(lines), flags=re.MULTILINE)
    lines[:] = re.sub(r"^(\w+:) (?=\S)", r"**\1** ", text, flags=re.MULTILINE).split("\n")


def setup(app) -> None:
    """Have docstrings prepared before napoleon reads them."""
    app.connect("autodoc-process-docstring", set_sections_apart, priority=400)
