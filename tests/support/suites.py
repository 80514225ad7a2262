"""Which tests the quick suite leaves out, and which of the slow suite share a process."""

from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import pytest
from flwr.serverapp import ServerApp

RUNS = frozenset({"federation", "killable_run", "split_run", "uncut_run"})
"""Modules beside this one that run whole rounds of real models."""
FAMILIES = frozenset({"llama", "gpt2"})
"""Model types that the quick suite is content with."""
COSTLY = ("bench", "over_tls")
"""Fixtures of several files that start processes: they are started once."""
LONGEST = (
    "deployment/test_endings",
    "deployment/test_example",
    "deployment/test_namespaces",
    "over_tls",
    "apps/test_killed_runs",
    "deployment/test_resume",
    "quickstart/test_demo",
)
"""Groups of the slow suite in the order in which they are begun, so that none is left for last."""


def keeps_processes_busy(markers: str) -> bool:
    """Whether an expression of markers chooses the slow suite, or the exhaustive one."""
    return markers.startswith(("slow", "exhaustive"))


def slow_group(item: pytest.Item) -> str:
    """The tests of a file, or those with a costly fixture, by name."""
    shared = [name for name in COSTLY if name in getattr(item, "fixturenames", ())]
    return shared[0] if shared else f"{item.path.parent.name}/{item.path.stem}"


def longest_first(group: str) -> int:
    """A key to sort by: where a group is in `LONGEST`, and after those where it is not."""
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)


def takes_long(item: pytest.Function) -> bool:
    """Whether a test starts processes, runs whole rounds, or is of one more model family.

    What it does is read from its function, its fixtures and what they call in its own file.
    """
    callspec = getattr(item, "callspec", None)
    given = callspec.params.values() if callspec is not None else ()
    if any(getattr(value, "model_type", "llama") not in FAMILIES for value in given):
        return True
    fixtures = item._fixtureinfo.name2fixturedefs
    functions = [item.function, *(f.func for fs in fixtures.values() for f in fs)]
    seen: set[Callable[..., Any]] = set()
    return any(_reaches_a_run(function, seen) for function in functions)


def _reaches_a_run(function: Callable[..., Any], seen: set[Callable[..., Any]]) -> bool:
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, FunctionType) or function in seen:
        return False
    seen.add(function)
    for value in _named(function.__code__, function.__globals__):
        if isinstance(value, ServerApp) or getattr(value, "__name__", "") == "subprocess":
            return True
        if getattr(value, "__module__", "") in RUNS:
            return True
        beside = getattr(value, "__module__", None) == function.__module__
        if beside and _reaches_a_run(value, seen):
            return True
    return False


def _named(code: CodeType, names: Mapping[str, Any]) -> Iterator[Any]:
    """The values of the names that a function and those inside it use."""
    for name in code.co_names:
        if name in names:
            yield names[name]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named(constant, names)
