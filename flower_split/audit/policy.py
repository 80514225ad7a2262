"""The policy: how much an audit may find, in a file that is fixed before it starts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flower_split.config.checks import in_range
from flower_split.config.problems import nearest, raise_problems
from flower_split.errors import ConfigError
from flower_split.text_tables import read_toml

LIMITS: Mapping[str, str] = {
    "tokens": "tokens of the texts",
    "content-tokens": "tokens with a letter or a digit that are not among the most frequent ones",
    "rouge-l": "the longest common subsequence (F-measure)",
    "documents": "whole texts",
    "worst-decile": "tokens of the tenth of the texts of which most was found",
    "identifiers": "identifiers",
    "labels-above-guess": "labels, less what the model guesses without the gradient",
    "canaries": "canaries that were trained on, told from others at 1 % false ones",
    "update-tokens": "tokens of a short text, by what a step or two over it add to the adapter",
}
"""What a policy may limit, in words; all are shares between 0 and 1."""

DEFAULT: Mapping[str, float] = {
    "tokens": 0.25,
    "content-tokens": 0.10,
    "documents": 0.0,
    "identifiers": 0.0,
    "labels-above-guess": 0.10,
}
"""Without a file."""

_MOST_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The most of each that attacks may find. What has no limit is reported alone."""

    limits: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT))
    path: Path | None = None
    """The file; None for the default."""
    sha256: str = ""
    """Of the file as it was read."""

    def check_unchanged(self) -> None:
        """Raise `ConfigError` where the file is another one than was read at the start."""
        if self.path is not None and _digest(_bytes(self.path)) != self.sha256:
            raise ConfigError(
                f"the policy {self.path} was changed after the audit had started, so that it gives "
                "no verdict: fix the policy, then run the audit again"
            )


def read_policy(path: Path | None) -> Policy:
    """The policy in a TOML file with a table `limits`; without a file, the default.

    Raises:
        ConfigError: there is no such file, or something in it is no limit.
    """
    if path is None:
        text = repr(sorted(DEFAULT.items()))
        return Policy(sha256=_digest(text.encode()))
    content = _bytes(path)
    try:
        table: dict[str, Any] = read_toml(content.decode())
    except ValueError as error:
        raise ConfigError(f"the policy {path} is no TOML: {error}") from error
    problems = [
        f"the policy {path} has the unknown table or key {name!r}: expected [limits] alone"
        for name in table.keys() - {"limits"}
    ]
    limits = table.get("limits", {})
    if not isinstance(limits, dict) or not limits:
        problems.append(f"the policy {path} has no [limits] with {', '.join(LIMITS)}")
        limits = {}
    for name, value in limits.items():
        if name not in LIMITS:
            problems.append(
                f"the policy {path} has the unknown limit {name!r}{nearest(name, LIMITS)}"
            )
            continue
        try:
            in_range(f"the policy's limit {name}", value, 0.0, 1.0)
        except ConfigError as error:
            problems.append(str(error))
    raise_problems(problems, f"the policy {path}")
    return Policy(
        limits={name: float(value) for name, value in limits.items()},
        path=path,
        sha256=_digest(content),
    )


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error  # a path with a null character is no path
        raise ConfigError(f"the policy {str(path)!r} cannot be read: {why}") from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"the policy {path} is larger than {_MOST_BYTES} bytes")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
