"""The checkpoints of one run: saved after every round, and resumed from when it is resumed."""

import logging
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from flower_split.checkpoint import Checkpoint, CheckpointStore, Encoded
from flower_split.checkpoint.kinds import restore_global_randomness
from flower_split.config.resuming import differences, settings
from flower_split.config.sections import SplitConfig
from flower_split.errors import StateError, TrunkRestartedError
from flower_split.reporting import installed_versions
from flower_split.strategies.checkpoints import run_state
from flower_split.strategies.checkpoints.inner_state import InnerState, lines
from flower_split.strategies.early_stopping import best_round
from flower_split.strategies.history import SplitResult
from flower_split.strategies.hosting.adapter_parts import to_arrays
from flower_split.strategies.hosting.host import TrunkHost
from flower_split.strategies.hosting.roster import Roster
from flower_split.strategies.inner import takes_any_ranks
from flower_split.transport.messages import Purpose

logger = logging.getLogger(__name__)

MOST_RESTARTS = 3
"""Times that a trunk service may end between two states of a run, which is to get somewhere."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a run has come."""

    server_round: int = -1
    """The last round that was begun; -1 is before everything."""
    complete: bool = True
    """Whether it was evaluated too, and not only trained."""
    is_best: bool = False
    """Whether it is kept as the best."""

    @property
    def next_round(self) -> int:
        """The round in which something is to be done next."""
        return self.server_round + 1 if self.complete else self.server_round


class RunCheckpoints:
    """Context manager around a run. Without a folder it begins every run anew and saves nothing.

    Args:
        folder: For the checkpoints; None where none are written.
        config: The run's configuration.
        inner: The inner strategy, before its first round.
        host: Hosts the trunk.
        num_rounds: Rounds of the run.

    Raises:
        StateError: on entering: the folder cannot be written or another run writes there, or
            `inner` has something that a checkpoint cannot keep.
    """

    def __init__(
        self,
        folder: Path | None,
        config: SplitConfig,
        inner: Strategy,
        host: TrunkHost,
        num_rounds: int,
    ) -> None:
        self._folder = folder
        self._config = config
        self._inner = inner
        self._host = host
        self._num_rounds = num_rounds
        self._stack = ExitStack()
        self._store: CheckpointStore | None = None
        self._state: InnerState | None = None
        self._last: Checkpoint | None = None
        self._restarts = 0
        self._origin_run_id = ""
        self._best: int | None = None
        self._saved = False

    def __enter__(self) -> Self:
        if self._folder is not None:
            with ExitStack() as stack:
                self._state = InnerState(self._inner)
                store = CheckpointStore(self._folder, keep=self._config.checkpoint.keep)
                self._store = stack.enter_context(store)
                self._stack = stack.pop_all()
        elif self._host.can_restart:
            try:
                self._state = InnerState(self._inner)
            except StateError as error:
                logger.warning("the run ends if its trunk does: %s", error)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def lost_last(self) -> bool:
        """Whether the last state that was to be saved was not: a resumed run would not know it."""
        return self._store is not None and not self._saved

    def may_drop(self, purpose: Purpose) -> bool:
        """Whether silos may drop what they keep, as they train or evaluate for the last time.

        Not before that training is saved: a run that is killed first trains once more.
        """
        return self._store is None or (purpose == "evaluate" and self._saved)

    def begin(
        self, initial_arrays: ArrayRecord | None, roster: Callable[[], Roster]
    ) -> tuple[SplitResult, Reached]:
        """What the run starts from: its own beginning, or the last checkpoint.

        Args:
            initial_arrays: The adapter to start from; a run that is resumed has its own.
            roster: Asks the silos for their names; used where the inner strategy knows them.

        Raises:
            StateError: the checkpoint is another run's, or none is intact.
        """
        last = None
        if self._store is not None and self._config.resume:
            last = self._store.load_last(fallback=self._config.checkpoint.fallback)
            if last is None:
                logger.info("nothing to resume in %s: the run starts anew", self._store.folder)
        if last is not None:
            return self._resume(last, roster)
        if self._store is not None:
            if not self._config.resume:
                self._store.set_aside()
            self._host.origin_run_id = self._origin_run_id = secrets.token_hex(16)
        start = self._host.begin(initial_arrays, any_ranks=takes_any_ranks(self._inner))
        result = SplitResult(arrays=start)
        if self._host.can_restart and self._state is not None:
            nothing = Reached()
            self._last = self._packed(
                result, nothing.server_round, self._state.take({}), complete=True, best=None
            )
        return result, Reached()

    def go_back(self, roster: Callable[[], Roster]) -> tuple[SplitResult, Reached]:
        """The run's last state again, at a trunk that has come back and was reopened.

        Args:
            roster: As for `begin`.

        Raises:
            StateError: there is none.
            TrunkRestartedError: the trunk has ended more than `MOST_RESTARTS` times since it.
        """
        self._restarts += 1
        if self._last is not None and self._restarts > MOST_RESTARTS:
            raise TrunkRestartedError(
                f"the trunk has ended {self._restarts} times after round "
                f"{self._last.server_round}: its log says why"
            )
        if self._last is None:
            raise StateError(
                "the trunk service came back without the run, whose state was not kept: "
                f"{type(self._inner).__name__} has something that a checkpoint cannot keep"
            )
        return self._resume(self._last, roster)

    def save(
        self, result: SplitResult, server_round: int, roster: Roster, *, complete: bool
    ) -> Reached | None:
        """Save the run's state; when that fails, a warning says so and the run continues.

        Returns:
            What a run would resume from; None where nothing was saved.

        Raises:
            ConfigError: the silos do not report `best-metric`, and the best is to be kept.
        """
        if self._state is None:
            return None
        self._saved = False
        best = self._best
        if self._config.checkpoint.keep_best:
            best = best_round(self._config, result.evaluate_metrics_clientapp)
        inner = self._state.take(roster.names)
        if inner.lost:
            logger.warning(
                "round %d is not saved, because %s cannot be kept in a checkpoint:%s",
                server_round,
                type(self._inner).__name__,
                lines(inner.lost),
            )
            return None
        checkpoint = self._packed(
            result,
            server_round,
            inner,
            complete=complete,
            best=best if best == server_round else self._best,
        )
        if self._host.can_restart:
            self._last, self._restarts = checkpoint, 0
        if self._store is None:
            return None
        self._saved = self._store.save(checkpoint)
        if not self._saved:
            return None
        self._best = checkpoint.best_round
        return Reached(
            server_round=server_round, complete=complete, is_best=self._best == server_round
        )

    def _packed(
        self,
        result: SplitResult,
        server_round: int,
        inner: Encoded,
        *,
        complete: bool,
        best: int | None,
    ) -> Checkpoint:
        return run_state.pack(
            result,
            server_round=server_round,
            complete=complete,
            best_round=best,
            config=self._config,
            origin_run_id=self._origin_run_id,
            num_rounds=self._num_rounds,
            host=self._host,
            inner=inner,
        )

    def _resume(
        self, last: Checkpoint, roster: Callable[[], Roster]
    ) -> tuple[SplitResult, Reached]:
        state = run_state.read_state(last)
        self._check(last, state)
        reached = to_arrays(run_state.read_adapter(last))
        self._host.begin(reached, any_ranks=takes_any_ranks(self._inner))
        self._host.load_session_states(run_state.read_session_states(last))
        self._host.origin_run_id = self._origin_run_id = state.origin_run_id
        nodes = roster().nodes() if state.mentions_nodes else {}
        if self._state is not None:
            self._state.put_back(state.inner, last, nodes)
        result = run_state.read_result(last)
        restore_global_randomness(run_state.read_randomness(last))
        self._best = last.best_round
        if self._host.can_restart:
            self._last = last
        if last.server_round < 0:
            logger.info("the run begins once more")
            return result, Reached()
        logger.info(
            "the run goes on after round %d%s of %d",
            last.server_round,
            "" if last.complete else ", which is trained and not yet evaluated,",
            self._num_rounds,
        )
        return result, Reached(server_round=last.server_round, complete=last.complete)

    def _check(self, last: Checkpoint, state: run_state.RunState) -> None:
        """Raise `StateError` when the checkpoint is of a run with other settings."""
        found = differences(state.settings, settings(self._config))
        if self._num_rounds < last.server_round:
            found.append(
                f"the checkpoint is of round {last.server_round}, and num-server-rounds is "
                f"{self._num_rounds}"
            )
        if found:
            raise StateError(
                f"the run in {self._folder} cannot be resumed with these settings:"
                + "".join(f"\n- {one}" for one in found)
                + "\nSet them back, or choose another output-dir"
            )
        if state.num_rounds != self._num_rounds:
            logger.warning(
                "the run had %d rounds and has %d now%s",
                state.num_rounds,
                self._num_rounds,
                ""
                if self._config.train.schedule == "constant"
                else f": its {self._config.train.schedule} learning-rate schedule is drawn anew",
            )
        if state.versions != installed_versions():
            logger.warning(
                "the run was begun with other versions of its packages, or on another platform: "
                "its results may differ in their last bits"
            )
