"""The user's folders for a program's files, by the XDG Base Directory specification."""

import os
from pathlib import Path

_OURS = "flower-split"


def user_folder(variable: str, otherwise: str) -> Path:
    """Our folder in the one that an environment variable names.

    Args:
        variable: Such as `XDG_CACHE_HOME`.
        otherwise: Folder in the user's home, where the variable names none.
    """
    named = os.environ.get(variable, "")
    # The specification has relative paths ignored.
    return (Path(named) if os.path.isabs(named) else Path.home() / otherwise) / _OURS
