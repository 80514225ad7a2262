"""The silo's half of the optimizer's state, kept in files from one round to the next.

A file is one session's state: `<round>-<tag>.safetensors`, with a digest over all that it says. It
is written next to its place, synced and renamed. Whether a session counted is known to the trunk
alone, so the states before it are kept as well, and the trunk says from which both go on.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flower_split.client.sealed_tensors import TEMPORARY, read_sealed, why, write_sealed
from flower_split.client.state_folder import OURS, check_private, make_private, remove_files
from flower_split.errors import StateError
from flower_split.optimization.moments import Parameters, check_moments, largest_size
from flower_split.transport.state_tags import is_tag

logger = logging.getLogger(__name__)

FORMAT = "flower-split optimizer state 1"

KEPT = 3
"""States that a silo keeps: its last, the one from which that went on, and the one before."""

_HEADER_BYTES = 1 << 20


class KeptOptimizer:
    """One silo's states in `folder`.

    Args:
        folder: The silo's own; made when something is saved.
        parameters: What the optimizer trains, by name.
    """

    def __init__(self, folder: Path, parameters: Parameters) -> None:
        self._folder = folder
        self._parameters = dict(parameters)
        self._latest: tuple[str, dict[str, Tensor]] | None = None

    def offers(self) -> tuple[str, ...]:
        """Tags of the states that can be gone on from, latest first.

        Every one was read and checked; one that fails is removed, with a warning.
        """
        tags = list[str]()
        for path in self._files()[:KEPT]:
            try:
                check_private(self._folder)
                tensors = self._read(path)
            except (OSError, StateError) as error:
                logger.warning("the optimizer's state in %s is not used: %s", path, why(error))
                _remove(path)
                continue
            tag = _tag_of(path)
            if not tags:
                self._latest = (tag, tensors)
            tags.append(tag)
        return tuple(tags)

    def load(self, tag: str) -> dict[str, Tensor]:
        """The state with a tag that `offers` gave.

        Raises:
            StateError: it is there no more, or no longer what it was.
        """
        latest, self._latest = self._latest, None
        if latest is not None and latest[0] == tag:
            return latest[1]
        for path in self._files():
            if _tag_of(path) == tag:
                try:
                    return self._read(path)
                except OSError as error:
                    raise StateError(f"{path} cannot be read: {error.strerror}") from error
        raise StateError(
            f"the optimizer's state that the session resumes is gone from {self._folder}"
        )

    def save(
        self, tag: str, server_round: int, tensors: Mapping[str, Tensor], *, after: str
    ) -> None:
        """Keep what a session left. When that fails, a warning is all: the next one starts afresh.

        Args:
            tag: The session's.
            server_round: The session's.
            tensors: The state.
            after: Tag of the state from which the session went on. Those that were saved later than
                that one never counted and are removed; empty when it started afresh.
        """
        try:
            check_moments(self._parameters, tensors)
            make_private(self._folder)
            facts = {"format": FORMAT, "tag": tag, "round": str(server_round)}
            write_sealed(self._folder / f"{server_round:08d}-{tag}.safetensors", facts, tensors)
            self._prune(tag, after)
        except (OSError, StateError) as error:
            logger.warning(
                "the optimizer's state cannot be kept in %s (%s); the next round starts with a "
                "fresh optimizer on both sides",
                self._folder,
                why(error),
            )

    def remove(self) -> None:
        """Remove all states: no session will go on from them."""
        remove_files(self._folder)

    def _files(self) -> list[Path]:
        """The states' files, latest first."""
        try:
            paths = [path for path in self._folder.iterdir() if OURS.fullmatch(path.name)]
        except OSError:
            return []
        return sorted((p for p in paths if p.name != TEMPORARY), reverse=True)

    def _prune(self, tag: str, after: str) -> None:
        earlier = [path for path in self._files() if _tag_of(path) != tag]
        position = next((i for i, p in enumerate(earlier) if _tag_of(p) == after), len(earlier))
        kept = earlier[position : position + KEPT - 1]
        for path in earlier:
            if path not in kept:
                _remove(path)

    def _read(self, path: Path) -> dict[str, Tensor]:
        """The checked state in a file; what is in the file is not trusted."""
        most = largest_size(self._parameters) + _HEADER_BYTES
        facts, tensors = read_sealed(path, most_bytes=most)
        if facts.get("format") != FORMAT or facts.get("tag") != _tag_of(path):
            raise StateError("it was written by another version, or for another session")
        check_moments(self._parameters, tensors)
        return tensors


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, why(error))


def _tag_of(path: Path) -> str:
    tag = path.stem.rpartition("-")[2]
    return tag if is_tag(tag) else ""
