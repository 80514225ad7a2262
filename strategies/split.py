"""`SplitStrategy`: any Flower strategy over a model whose middle layers stay on the server."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flower_split.config import conflicts
from flower_split.config.model import layers_text
from flower_split.config.problems import raise_problems
from flower_split.config.sections import SplitConfig
from flower_split.errors import RoundError, StateError, TrunkRestartedError
from flower_split.reporting.events import EventLog
from flower_split.strategies.checkpoints.run_checkpoints import Reached, RunCheckpoints
from flower_split.strategies.early_stopping import stops_early
from flower_split.strategies.history import SplitResult
from flower_split.strategies.hosting.exchange import exchange
from flower_split.strategies.hosting.host import TrunkHost
from flower_split.strategies.hosting.invited_silo import RoundTerms
from flower_split.strategies.hosting.named_nodes import silos_named
from flower_split.strategies.hosting.round_filter import RoundFilter
from flower_split.strategies.hosting.round_sessions import RoundSessions
from flower_split.strategies.inner import allowance_of, central_privacy, check_inner, weight_key
from flower_split.strategies.output import checkpoint_folder
from flower_split.strategies.round_line import round_line
from flower_split.strategies.run import EvaluateFn, Run, ShouldStop
from flower_split.strategies.run_events import RunEvents
from flower_split.strategies.silo_steps import spent
from flower_split.strategies.union_metrics import of_union
from flower_split.transport.messages import Purpose

logger = logging.getLogger(__name__)


class SplitStrategy(Strategy):
    """Hosts the trunk for a run and lets `inner` aggregate full adapters, as if nothing was cut.

    It must be the outermost strategy: only its own `start()` hosts the trunk. Privacy wrappers of
    Flower belong inside: `SplitStrategy(config, DifferentialPrivacy…(FedAvg()))`.

    Args:
        config: The run's configuration; silos must have the same.
        inner: Any strategy of Flower's message API.
        host: A trunk that is already hosted, and stays so afterwards; None hosts one per run.
        on_round: Called after every round with the result so far and the round's number, before
            it is saved; a round that is done again, because a run was resumed, comes again.
        label: Stands in front of every round's line in the log; what has one is no run of its own,
            but the baseline of another.
        events: Where what happens is told; None tells nobody.
        checkpoints: Folder for the run's checkpoints; None takes `checkpoints` in the configured
            output folder, and writes none where that is empty.

    Raises:
        ConfigError: `inner` cannot aggregate the run's adapters.
    """

    def __init__(
        self,
        config: SplitConfig,
        inner: Strategy,
        *,
        host: TrunkHost | None = None,
        checkpoints: Path | None = None,
        on_round: Callable[[SplitResult, int], None] | None = None,
        label: str = "",
        events: EventLog | None = None,
    ) -> None:
        check_inner(inner, config.lora, config.peft)
        self._private = central_privacy(inner)
        if self._private is not None:
            found = conflicts.of_central_privacy(config.strategy, config.trunk, config.checkpoint)
            raise_problems(found, "the run's settings")
        self.config = config
        self.inner = inner
        self.result = SplitResult()
        self._host = host
        self._checkpoints = checkpoints
        self._on_round = on_round
        self._label = f"{label}: " if label else ""
        self._sessions: RoundSessions | None = None
        self._events = RunEvents(events, alone=bool(label))

    def summary(self) -> None:
        """Log what is cut where, and the inner strategy's own summary."""
        split, trunk = self.config.split, self.config.trunk
        logger.info(
            "split of %s: silos hold %s bottom and %s top layers, trunk adapters %s, inner %s",
            self.config.model.name,
            layers_text(split.bottom_layers, split.most_bottom),
            layers_text(split.top_layers, split.most_top),
            trunk.adapters,
            type(self.inner).__name__,
        )
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The inner strategy's messages, each with the silo's part and its own invitation."""
        sessions = self._open_sessions()
        messages = self.inner.configure_train(server_round, arrays, config, grid)
        return [sessions.invite(message) for message in messages]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """As `configure_train`; in the first and last round one silo is asked for the sample."""
        sessions = self._open_sessions()
        messages = self.inner.configure_evaluate(server_round, arrays, config, grid)
        sampled = bool(self.config.sample_prompt) and sessions.is_first_or_last
        return [
            sessions.invite(message, sample=sampled and position == 0)
            for position, message in enumerate(messages)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The inner strategy's aggregate of the replies that count.

        Raises:
            RoundError: silos were asked, and fewer replies count than `strategy.min-replies`.
        """
        sessions = self._open_sessions()
        received = sessions.receive(replies)
        wanted = self.config.strategy.min_replies
        if sessions.counted < wanted:
            if not sessions.records:
                return None, None
            raise RoundError(sessions.too_few(wanted))
        return self.inner.aggregate_train(server_round, received)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The inner strategy's aggregate of the replies that count.

        Raises:
            RoundError: no reply counts in the evaluation before the first round; later on that is
                logged, so that what was learned is not lost.
        """
        sessions = self._open_sessions()
        received = sessions.receive(replies)
        if not sessions.counted:
            if sessions.records:
                if server_round == 0:
                    raise RoundError(sessions.too_few())
                logger.warning("%s", sessions.too_few())
            return None
        metrics = self.inner.aggregate_evaluate(server_round, received)
        return None if metrics is None else of_union(metrics, self.config.model.task)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        should_stop: ShouldStop | None = None,
    ) -> SplitResult:
        """Host the trunk, run all rounds, and leave nothing behind, however the run ends.

        After every round the run's state is saved; with `resume` it resumes from there.

        Args:
            grid: Flower's grid.
            initial_arrays: The adapter to start from; None makes PEFT's own initialisation from
                the configured seed. A run that is resumed has its own.
            num_rounds: None takes the configured number.
            timeout: Seconds after which a round does without silent silos; None takes the
                configured time.
            train_config: Fields that every training message carries.
            evaluate_config: Fields that every evaluation message carries.
            evaluate_fn: Evaluation on the server, before the first and after every round.
            should_stop: Asked at the end of every round but round 0, with the round's number and
                the result so far, which it must not change; True ends the run, as `early-stop`
                does. A run that is resumed is asked about its last round again.

        Returns:
            The result. It is also `self.result`, as far as it got when a run fails.

        Raises:
            RoundError: too few replies count in a round, with the reasons of all others.
            StateError: checkpoints cannot be written, or not be resumed from.
            SuperLinkError: the run was stopped, or the SuperLink is gone.
            ModelError, AdapterError, TrunkError: the trunk cannot be loaded or hosted.
        """
        started = time.monotonic()
        self.result = SplitResult()
        folder = self._checkpoints if self.config.checkpoint.keep else None
        folder = folder or checkpoint_folder(self.config)
        rounds = self.config.num_server_rounds if num_rounds is None else num_rounds
        with ExitStack() as stack:
            host = self._host or stack.enter_context(TrunkHost(self.config))
            run = Run(
                config=self.config,
                inner=self.inner,
                grid=grid,
                host=host,
                checkpoints=stack.enter_context(
                    RunCheckpoints(folder, self.config, self.inner, host, rounds)
                ),
                num_rounds=rounds,
                timeout=self.config.round_timeout if timeout is None else timeout,
                train_config=train_config or ConfigRecord(),
                evaluate_config=evaluate_config or ConfigRecord(),
                evaluate_fn=evaluate_fn,
            )
            stack.enter_context(silos_named(lambda: self._names(run)))
            self.result, reached = run.checkpoints.begin(initial_arrays, run.read_roster)
            self.summary()
            self._events.begun(self.config, host, rounds, reached.next_round)
            while True:
                try:
                    self._run_rounds(run, reached, should_stop)
                    break
                except TrunkRestartedError as error:
                    reached = self._go_back(run, error)
        logger.info("%d rounds in %.1f s", self.result.last_round, time.monotonic() - started)
        return self.result

    def _run_rounds(self, run: Run, reached: Reached, should_stop: ShouldStop | None) -> None:
        """All that is left to do."""
        stopped = reached.complete and self._is_stopped(reached.server_round, should_stop)
        for server_round in range(reached.next_round, run.num_rounds + 1):
            evaluations = self.result.evaluate_metrics_clientapp
            trained = server_round == reached.server_round
            if stopped or stops_early(self.config, evaluations, server_round):
                break
            if server_round > 0 and not trained and self._is_spent(server_round):
                break
            self._run_round(run, server_round, trained=trained)
            stopped = self._is_stopped(server_round, should_stop)

    def _go_back(self, run: Run, error: TrunkRestartedError) -> Reached:
        """Have the run go on from its last state, at a trunk that came back without it."""
        logger.warning("%s. This round's sessions are lost; it is done again", error)
        run.host.reopen()
        self.result, reached = run.checkpoints.go_back(run.read_roster)
        return reached

    def _is_stopped(self, server_round: int, should_stop: ShouldStop | None) -> bool:
        if server_round < 1 or should_stop is None or not should_stop(server_round, self.result):
            return False
        logger.info("stopping after round %d: should_stop says so", server_round)
        return True

    def _is_spent(self, server_round: int) -> bool:
        private = self._private
        if why := spent(self.config, self.result.history):
            logger.info("stopping before round %d: %s", server_round, why)
            return True
        if private is None or not private.is_spent:
            return False
        logger.info(
            "stopping before round %d: ε is %.3g, and another round would go beyond %g "
            "(strategy.dp-max-epsilon)",
            *(server_round, private.epsilon(), private.max_epsilon),
        )
        return True

    def _run_round(self, run: Run, server_round: int, *, trained: bool) -> None:
        result = self.result
        if server_round > 0 or self.config.evaluate_initial:
            self._events.round_begun(server_round, run.num_rounds)
        if server_round > 0 and not trained:
            logger.info("%sround %d of %d begins", self._label, server_round, run.num_rounds)
            before = result.arrays, result.adapter
            self._train(run, server_round)
            # Silos drop their optimizers' state as they evaluate the last round.
            if server_round == run.num_rounds or self._private is not None:
                self._save(run, server_round, complete=False)
            if self._private is not None and run.checkpoints.lost_last:
                # A resumed run would publish this round once more, and count it once.
                result.arrays, result.adapter = before
                raise StateError(
                    f"round {server_round} is not saved, and with central differential privacy "
                    "nothing is published that a resumed run would not count: make room in "
                    "output-dir, or set checkpoint.keep to 0"
                )
        if server_round > 0 or self.config.evaluate_initial:
            self._evaluate(run, server_round)
        metrics = run.evaluate_fn(server_round, result.arrays) if run.evaluate_fn else None
        if metrics is not None:
            result.evaluate_metrics_serverapp[server_round] = metrics
        line = round_line(result, server_round, run.num_rounds)
        if server_round > 0 or self.config.evaluate_initial:
            logger.info("%s%s", self._label, line)
        if self._on_round is not None:
            self._on_round(result, server_round)
        self._save(run, server_round, complete=True)
        if server_round > 0 or self.config.evaluate_initial:
            self._events.round_ended(result, server_round)

    def _save(self, run: Run, server_round: int, *, complete: bool) -> None:
        saved = run.checkpoints.save(self.result, server_round, run.roster, complete=complete)
        if saved is not None:
            self._events.saved(saved)

    def _train(self, run: Run, server_round: int) -> None:
        with self._round(run, "train", server_round):
            with run.drawing("train", server_round) as grid:
                messages = self.configure_train(
                    server_round, self.result.arrays, run.train_config, grid
                )
            replies = self._exchange(run, messages)
            arrays, metrics = self.aggregate_train(server_round, replies)
        if arrays is not None:
            self.result.arrays = arrays
        if metrics is not None:
            self.result.train_metrics_clientapp[server_round] = metrics
        self._events.aggregated("train", server_round, metrics)
        self.result.adapter = run.host.adapter(self.result.arrays)

    def _evaluate(self, run: Run, server_round: int) -> None:
        with self._round(run, "evaluate", server_round):
            with run.drawing("evaluate", server_round) as grid:
                messages = self.configure_evaluate(
                    server_round, self.result.arrays, run.evaluate_config, grid
                )
            replies = self._exchange(run, messages)
            metrics = self.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self.result.evaluate_metrics_clientapp[server_round] = metrics
        self._events.aggregated("evaluate", server_round, metrics)

    @contextmanager
    def _round(self, run: Run, purpose: Purpose, server_round: int) -> Iterator[None]:
        """Sessions for one exchange; on leaving they have ended and are in the history."""
        started = time.monotonic()
        connected = run.wait(purpose)
        run.host.note_connected(connected)
        self._events.connected(connected, run.roster.names)
        terms = RoundTerms(
            purpose=purpose,
            server_round=server_round,
            num_rounds=run.num_rounds,
            seconds=run.timeout,
            last_training=server_round == run.num_rounds and run.checkpoints.may_drop(purpose),
        )
        sessions = RoundSessions(
            run.host,
            terms,
            weight_key=weight_key(self.inner),
            allowance=allowance_of(self.inner, self.config.lora, self.config.peft),
            round_filter=RoundFilter.of(self.config.strategy),
        )
        with sessions:
            self._sessions = sessions
            try:
                yield
            finally:
                self._sessions = None
                result, spent = self.result, time.monotonic() - started
                result.history += sessions.history()
                for record in sessions.records.values():
                    run.roster.note(record.node_id, record.silo)
                result.seconds[server_round] = result.seconds.get(server_round, 0.0) + spent
                if sessions.sample:
                    result.samples[server_round] = sessions.sample
                self._events.exchange_ended(sessions, spent)

    def _names(self, run: Run) -> dict[int, str]:
        """The silos' names by node id, those of an exchange in progress among them."""
        names, sessions = run.roster.names, self._sessions
        if sessions is not None:
            names |= {node: one.silo for node, one in sessions.seen().items() if one.silo}
            names |= {node: one.silo for node, one in [*sessions.records.items()] if one.silo}
        return names

    def _exchange(self, run: Run, messages: list[Message]) -> list[Message]:
        sessions = self._open_sessions()
        self._events.exchange_begun(sessions, len(messages))
        replies = exchange(
            run.grid,
            messages,
            run.timeout,
            is_lost=sessions.is_lost,
            on_look=lambda: self._events.look(sessions, run.host),
        )
        if len(replies) < len(messages) or any(reply.has_error() for reply in replies):
            run.host.confirm()  # before silos are blamed for it
        return replies

    def _open_sessions(self) -> RoundSessions:
        if self._sessions is None:
            raise RoundError(
                "SplitStrategy hosts the trunk in its own start(): make it the outermost strategy "
                "and put the others inside, SplitStrategy(config, inner)"
            )
        return self._sessions
