"""The silo's half of what its sessions leave, kept in files from one round to the next.

A file is one session's state: `<round>-<tag>.safetensors`, with a digest over all that it says. It
is written next to its place, synced and renamed. Whether a session counted is known to the trunk
alone, so the states before it are kept as well, and the trunk says from which both go on.
"""

import logging
from pathlib import Path

from flower_split.client.state.folder import OURS, check_private, make_private, remove_files
from flower_split.client.state.kept_state import Generation
from flower_split.client.state.left_state import SessionState, SiloAdapter, unpacked_kept
from flower_split.client.state.sealed_tensors import TEMPORARY, read_sealed, why, write_sealed
from flower_split.errors import StateError
from flower_split.transport.state_tags import is_tag

logger = logging.getLogger(__name__)

FORMAT = "flower-split session state 1"

KEPT = 3
"""States that a silo keeps: its last, the one from which that went on, and the one before."""

_HEADER_BYTES = 1 << 20


class LeftFiles:
    """One silo's states in `folder`.

    Args:
        folder: The silo's own; made when something is saved.
        adapter: Which states fit.
    """

    def __init__(self, folder: Path, adapter: SiloAdapter) -> None:
        self._folder = folder
        self._adapter = adapter
        self._latest: tuple[str, SessionState] | None = None

    def offers(self) -> tuple[str, ...]:
        """Tags of the states that can be resumed from, latest first.

        Every one was read and checked; one that fails is removed, with a warning.
        """
        tags = list[str]()
        for path in self._files()[:KEPT]:
            try:
                check_private(self._folder)
                left = self._read(path)
            except (OSError, StateError) as error:
                logger.warning("what a session left in %s is not used: %s", path, why(error))
                _remove(path)
                continue
            tag = _tag_of(path)
            if not tags:
                self._latest = (tag, left)
            tags.append(tag)
        return tuple(tags)

    def load(self, tag: str) -> SessionState:
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
        raise StateError(f"what the session was to resume from is gone from {self._folder}")

    def save(self, tag: str, server_round: int, left: SessionState, *, after: str) -> None:
        """Keep what a session left. Where that is the optimizer's state alone and fails, a warning
        is all: the next session starts afresh.

        Args:
            tag: The session's.
            server_round: The session's.
            left: The state.
            after: Tag of the state from which the session went on. Those that were saved later than
                that one never counted and are removed; empty when it started afresh.

        Raises:
            StateError: what the silo alone has cannot be kept.
        """
        try:
            facts, tensors = self._adapter.packed(left)
            make_private(self._folder)
            facts |= {"format": FORMAT, "tag": tag, "round": str(server_round)}
            write_sealed(self._folder / f"{server_round:08d}-{tag}.safetensors", facts, tensors)
            self._prune(tag, after)
        except (OSError, StateError) as error:
            if left.kept.tensors:
                raise StateError(
                    f"the silo's own adapter tensors cannot be kept in {self._folder}: "
                    f"{why(error)}. Give the node a writable folder by state-dir in its node config"
                ) from error
            logger.warning(
                "the optimizer's state cannot be kept in %s (%s); the next round starts with a "
                "fresh optimizer on both sides",
                self._folder,
                why(error),
            )

    def remove(self) -> None:
        """Remove all states: no session will resume from them."""
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

    def _read(self, path: Path) -> SessionState:
        """The checked state in a file; what is in the file is not trusted."""
        most = self._adapter.most_bytes + _HEADER_BYTES
        facts, tensors = read_sealed(path, most_bytes=most)
        if facts.get("format") != FORMAT or facts.get("tag") != _tag_of(path):
            raise StateError("it was written by another version, or for another session")
        return self._adapter.unpacked(facts, tensors)


def newest_kept(folder: Path, before: int, *, tag: str = "") -> Generation | None:
    """What the silo whose `folder` it is kept for itself last, in a round before `before`.

    Damaged files are passed over; None when there is nothing. With a `tag`, only what the session
    of that tag left is taken.
    """
    for path in sorted(folder.glob("*.safetensors"), reverse=True):
        if OURS.fullmatch(path.name) is None or int(path.name[:8]) >= before:
            continue
        if tag and _tag_of(path) != tag:
            continue
        try:
            left = unpacked_kept(*read_sealed(path))
        except (OSError, StateError) as error:
            logger.warning("%s is damaged and is passed over: %s", path, why(error))
            continue
        return Generation(
            server_round=int(path.name[:8]), scale=left.scale, tensors=dict(left.tensors)
        )
    return None


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", path, why(error))


def _tag_of(path: Path) -> str:
    tag = path.stem.rpartition("-")[2]
    return tag if is_tag(tag) else ""
