"""`StateStore`: the states that one silo's sessions left in one run, and how many of them stay.

Silos of a split model and silos that hold the whole model use it alike. Whether a session of a
split model counted is known to the trunk alone, so the states before a session's are kept as well,
and the trunk says from which one both ends resume. A silo with the whole model resumes from the
newest state of an earlier round.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flower_split.adapters import SessionState
from flower_split.client.state.folder import REMEDY, remove_files
from flower_split.client.state.silo_adapter import SiloAdapter
from flower_split.client.state.state_file import StateFile
from flower_split.errors import StateError, UnsafeFolderError
from flower_split.private_files import check_private, make_folder, make_private

logger = logging.getLogger(__name__)

KEEP = 3
"""States that stay: the last session's, the one from which that resumed, and the one before."""

_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredState:
    """A state that was read, and whose it is."""

    server_round: int
    tag: str
    """Of the session."""
    state: SessionState


class StateStore:
    """One silo's states in `folder`.

    Args:
        folder: Of this silo in this run alone; made when something is saved.
        adapter: Which states fit. One that does not, or that is damaged, is removed with a warning
            where it is met.
        root: The folder that the user named, on the way to `folder`: from there on, nobody else
            may write. None for `folder` itself.
    """

    def __init__(self, folder: Path, adapter: SiloAdapter, *, root: Path | None = None) -> None:
        self.folder = folder
        self._root = root or folder
        self._adapter = adapter
        self._latest: StoredState | None = None

    def offers(self) -> tuple[str, ...]:
        """Tags of the states that can be resumed from, latest first; every one was checked."""
        tags = list[str]()
        for found in self._sound(StateFile.all_in(self.folder)[:KEEP]):
            if not tags:
                self._latest = found
            tags.append(found.tag)
        return tuple(tags)

    def load(self, tag: str) -> SessionState:
        """The state with a tag that `offers` gave.

        Raises:
            StateError: it is there no more, or no longer what it was.
        """
        latest, self._latest = self._latest, None
        if latest is not None and latest.tag == tag:
            return latest.state
        for file in StateFile.all_in(self.folder):
            if file.tag == tag:
                try:
                    return self._read(file)
                except OSError as error:
                    raise StateError(f"{file.path} cannot be read: {error.strerror}") from error
        raise StateError(f"what the session was to resume from is gone from {self.folder}")

    def newest(self, before: int) -> StoredState | None:
        """The latest state of a round before `before`; None where there is none."""
        files = [file for file in StateFile.all_in(self.folder) if file.server_round < before]
        return next(self._sound(files), None)

    def save(self, tag: str, server_round: int, state: SessionState, *, after: str) -> None:
        """Write what a session leaves, and remove what is no longer needed.

        Where moments alone cannot be written, a warning is all: the next session starts afresh.

        Args:
            tag: The session's.
            server_round: The session's.
            state: With the scaling of the store's adapter.
            after: Tag of the state from which the session resumed. Those that were saved later than
                that one never counted and are removed; empty when it started afresh.

        Raises:
            StateError: personal tensors cannot be written, or are not finite.
        """
        file = StateFile.at(self.folder, server_round, tag)
        self._adapter.check_personal(state)
        try:
            self._adapter.check_moments(state)
            make_folder(self._root)
            make_private(self.folder, below=self._root, remedy=REMEDY)
            file.write(state)
            self._prune(file, after)
        except (OSError, StateError) as error:
            if state.personal.tensors:
                raise StateError(
                    f"the silo's personal tensors cannot be saved in {self.folder}: {_why(error)}. "
                    "The node needs a folder of its own that it may write: state-dir in its node "
                    "config"
                ) from error
            logger.warning(
                "the optimizer's state cannot be saved in %s (%s); the next round starts with a "
                "fresh optimizer on both sides",
                self.folder,
                _why(error),
            )

    def remove(self) -> None:
        """Remove all states: no session will resume from them."""
        remove_files(self.folder)

    def _prune(self, saved: StateFile, after: str) -> None:
        files = StateFile.all_in(self.folder)
        resumed = next((i for i, file in enumerate(files) if file.tag == after), len(files))
        others = [file for file in files if file.path != saved.path]
        stay = [file for file in files[resumed:] if file in others][: KEEP - 1]
        for file in others:
            if file not in stay:
                _remove(file)

    def _sound(self, files: Iterable[StateFile]) -> Iterator[StoredState]:
        for file in files:
            try:
                check_private(self.folder, below=self._root, remedy=REMEDY)
            except (OSError, UnsafeFolderError) as error:
                logger.warning("no state in %s is used: %s", self.folder, _why(error))
                return
            try:
                state = self._read(file)
            except (OSError, StateError) as error:
                logger.warning("the state in %s is not used: %s", file.path, _why(error))
                _remove(file)
                continue
            yield StoredState(server_round=file.server_round, tag=file.tag, state=state)

    def _read(self, file: StateFile) -> SessionState:
        state = file.read(most_bytes=self._adapter.most_bytes + _HEADER_BYTES)
        self._adapter.check_moments(state)
        self._adapter.check_personal(state)
        return state


def newest_state(folder: Path, before: int, *, tag: str = "") -> StoredState | None:
    """The latest state in a silo's `folder` whose file is sound, for whoever has no model.

    Files that are damaged are passed over and stay.

    Args:
        folder: The silo's.
        before: Round before which the state was saved.
        tag: Of the session whose state is wanted; empty for any.
    """
    for file in StateFile.all_in(folder):
        if file.server_round >= before or (tag and file.tag != tag):
            continue
        try:
            state = file.read()
        except (OSError, StateError) as error:
            logger.warning("%s is damaged and is passed over: %s", file.path, _why(error))
            continue
        return StoredState(server_round=file.server_round, tag=file.tag, state=state)
    return None


def _remove(file: StateFile) -> None:
    try:
        file.path.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed: %s", file.path, _why(error))


def _why(error: OSError | StateError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
