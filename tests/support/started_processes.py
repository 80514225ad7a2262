"""What Python processes that tests start find on their path."""

import os
from pathlib import Path

WITHOUT_BITSANDBYTES = Path(__file__).parent / "without_bitsandbytes"


def python_path(*folders: str | Path) -> str:
    """A value of `PYTHONPATH` for processes that quantize nothing: `folders`, and what is set."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    found = dict.fromkeys([str(WITHOUT_BITSANDBYTES), *map(str, folders), *filter(None, inherited)])
    return os.pathsep.join(found)
