"""Findings: what a check says, one sentence each, and whether a run could go on from it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flower_split.errors import ConfigError, FlowerSplitError, UsageError

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found."""

    topic: str
    """What it is about, such as `data`."""
    kind: str
    """`ok`, `warning` or `problem`."""
    text: str


@dataclass(kw_only=True)
class Findings:
    """Everything that was found, in the order in which it was looked for."""

    all: list[Finding] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    """Rendered examples, which are for whoever holds the data and are in no report."""

    def ok(self, topic: str, text: str) -> None:
        """Note what is as it should be."""
        self.all.append(Finding(topic=topic, kind=OK, text=text))

    def warn(self, topic: str, text: str) -> None:
        """Note what is probably not meant."""
        self.all.append(Finding(topic=topic, kind=WARNING, text=text))

    def refuse(self, topic: str, text: str) -> None:
        """Note what a run would fail of, once, whatever else would fail of the same."""
        if text not in {one.text for one in self.problems}:
            self.all.append(Finding(topic=topic, kind=PROBLEM, text=text))

    @contextmanager
    def looking(self, topic: str) -> Iterator[None]:
        """A block whose errors of flower_split's own become problems of `topic`."""
        try:
            yield
        except UsageError:
            raise  # how the command was called is nothing that it found
        except ConfigError as error:
            for problem in error.problems:
                self.refuse(topic, problem)
        except FlowerSplitError as error:
            self.refuse(topic, str(error))

    @property
    def problems(self) -> list[Finding]:
        """Those of which a run would fail."""
        return [one for one in self.all if one.kind == PROBLEM]

    @property
    def warnings(self) -> list[Finding]:
        """Those that are probably not meant."""
        return [one for one in self.all if one.kind == WARNING]

    def as_json(self) -> dict[str, Any]:
        """For a program: `ok`, and every finding."""
        return {
            "ok": not self.problems,
            "findings": [
                {"topic": one.topic, "kind": one.kind, "text": one.text} for one in self.all
            ],
        }
