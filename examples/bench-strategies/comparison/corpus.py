"""The text that is always there: docstrings of three installed libraries, labelled by library."""

import json
from pathlib import Path

from flower_split.private_files import make_folder
from flower_split.quickstart.corpora import SILO_PACKAGES, package_docstrings

LABEL = "library"


def write_docstrings(path: Path, most: int | None = None) -> None:
    """Write all docstrings, or the first `most` of each library, to a `.jsonl` file."""
    rows = [
        {"text": text, LABEL: package}
        for package in SILO_PACKAGES
        for text in package_docstrings(package)[:most]
    ]
    make_folder(path.parent)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
