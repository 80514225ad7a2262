"""Problems of a configuration: all of them told at once, and unknown names with the nearest one."""

import difflib
from collections.abc import Iterable

from flower_split.errors import ConfigError


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean …?` with the valid key most like `name`, or all of the valid ones."""
    valid = list(valid)
    close = difflib.get_close_matches(name.replace("_", "-"), valid, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; valid are {', '.join(sorted(valid))}"


def raise_problems(problems: list[str], where: str, kind: type[ConfigError] = ConfigError) -> None:
    """Raise an error of `kind` with all `problems`, each once, or nothing when there are none."""
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        raise kind(unique[0])
    if unique:
        lines = "".join(f"\n- {problem}" for problem in unique)
        raise kind(f"{len(unique)} problems in {where}:{lines}", unique)
