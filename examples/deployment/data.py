"""Example data of one organisation: docstrings of a Python package, as JSON Lines.

::

    python data.py numpy FILE      # or torch, or transformers

A real silo has its own file instead: one JSON object a line, with the text in the field `text`.
"""

import argparse
import json
import sys
from pathlib import Path

from flower_split.errors import DataError
from flower_split.private_files import make_folder, write_whole
from flower_split.quickstart.corpora import SILO_PACKAGES, package_docstrings

MOST = 120


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=sorted(SILO_PACKAGES))
    parser.add_argument("file", type=Path, help="the .jsonl file to write")
    given = parser.parse_args()
    try:
        texts = package_docstrings(given.package)[:MOST]
        make_folder(given.file.parent)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        write_whole(given.file, lines.encode())
    except (DataError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(texts)} examples in {given.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
