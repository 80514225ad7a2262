"""How Sphinx makes the site out of README, docs and the examples' pages: `make docs`."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

import flower_split

ROOT = Path(__file__).parents[2]
INDEX = "docs/site/index.md"

project = "flower_split"
version = release = flower_split.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

include_patterns = [
    "*.md",
    "docs/*.md",
    "docs/site/*.md",
    "examples/README.md",
    "examples/**/README.md",
]
exclude_patterns = ["docs/README.md", "outputs", ".venv", "build"]
source_suffix = {".md": "markdown"}
root_doc = "docs/site/index"

html_theme = "furo"
html_title = "flower_split"
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 4

default_role = "code"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def to_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to a folder, as they are in the repository, lead to the folder's page."""
    folder = (ROOT / page).parent

    def target(link: re.Match[str]) -> str:
        if (folder / link[1]).resolve() == ROOT / "docs/README.md":
            return f"]({os.path.relpath(ROOT / INDEX, folder)})"
        return f"]({link[1]}/README.md)" if (folder / link[1] / "README.md").exists() else link[0]

    source[0] = re.sub(r"\]\(([^)#:\s]+)\)", target, source[0])


def setup(app: Sphinx) -> None:
    """Connect to what Sphinx reads."""
    app.connect("source-read", to_pages)
