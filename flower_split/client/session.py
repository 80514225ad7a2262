"""`SplitSession`: what a ClientApp needs to train or evaluate through the trunk on one message.

Whatever fails within it reaches the server without its text, which may be a user's.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn
from transformers import PreTrainedTokenizerBase

from flower_split.adapters.adalora.rank_allocation import check_last_allocation
from flower_split.client.discretion import discreet
from flower_split.client.drawn_steps import DrawnSteps
from flower_split.client.model_source import OpenDelivery, model_source
from flower_split.client.node_config import NodeConfig
from flower_split.client.opening import open_session, read_message
from flower_split.client.silo_data import SiloBatches, silo_batches, silo_tokenizer
from flower_split.client.stages import stages_of
from flower_split.client.statistics import SessionCost
from flower_split.client.trust import attested, client_tls
from flower_split.config.sections import SplitConfig
from flower_split.config.seeds import derive_seed
from flower_split.config.tasks import CAUSAL_LM
from flower_split.data import encode_prompt
from flower_split.devices import autocast_dtype, autocasting, resolve_device
from flower_split.errors import ModelError, SequenceError
from flower_split.lowrank import LORA_RECORD, scaling_fields
from flower_split.remote import SplitAdamW, find_remote
from flower_split.segments.randomness import numbers_from
from flower_split.training import (
    Accumulator,
    Batch,
    EvalMetrics,
    StepLoss,
    TrainMetrics,
    evaluate,
    show_progress,
    steps_in_round,
    steps_of,
    train_round,
)
from flower_split.training.batch import device_of, to_device
from flower_split.training.stages import mode
from flower_split.transport.base import Connect, Transport
from flower_split.transport.grpc.delivery import GrpcDelivery
from flower_split.transport.grpc.transport import GrpcTransport
from flower_split.transport.invitation import PROOF, SPLIT_RECORD

SAMPLE_TOKENS = 48
"""Tokens by which a prompt is continued."""

Metric = int | float | list[int] | list[float]


class SplitSession:
    """A context manager from a message to its reply: model, data, optimizer, trunk.

    ::

        @app.train()
        def train(message, context):
            with SplitSession(message, context) as session:
                for microbatches in session.train_steps():
                    step = session.accumulate(microbatches)
                    session.optimizer.step()
                    session.optimizer.zero_grad()
                return session.reply({"train-loss": step.loss})

    An exception that is not flower_split's own leaves the session as a `SiloError` without its
    text, because Flower sends that text to the server; the silo's log has all of it.

    Args:
        message: A train or evaluate message that `SplitStrategy` sent.
        context: The ClientApp's context; its run config must be the server's.
        config: The configuration; None reads it from the context.
        connect: Opens the session at the trunk.
        open_delivery: Opens a stream that fetches the model, where the server delivers it.
        trunk_parameters: Whether the trunk's adapter becomes parameters of the model, for any
            optimizer of torch in place of `optimizer`; `trunk.shares-adapter` must allow it.

    Raises:
        ConfigError: on entering: the run config, the node config or a file that it names for TLS
            is not valid.
        DeliveryError: on entering: a delivered model cannot be kept on the silo's disk.
        ModelError, AdapterError: on entering: model or adapters cannot be loaded.
        TrunkError: on entering or later: the trunk refused the session, or is gone.
    """

    def __init__(
        self,
        message: Message,
        context: Context,
        *,
        config: SplitConfig | None = None,
        connect: Connect = GrpcTransport,
        open_delivery: OpenDelivery = GrpcDelivery,
        trunk_parameters: bool = False,
    ) -> None:
        self.config = config or SplitConfig.from_run_config(context.run_config)
        self.node = NodeConfig.read(context.node_config)
        self._message = message
        self._context = context
        self._connect = connect
        self._open_delivery = open_delivery
        self._trunk_parameters = trunk_parameters
        self._stack = ExitStack()
        self._autocast = autocast_dtype(self.config.train.autocast)
        self._optimizer: SplitAdamW | None = None
        self._gradients: Accumulator | None = None
        self._data: SiloBatches | None = None
        self._sample = ""
        self._drawn = DrawnSteps()

    def __enter__(self) -> Self:
        self._cost = SessionCost(silo=self.silo)
        self._opening = read_message(self._message)
        self.invitation = self._opening.invitation
        with ExitStack() as stack:
            stack.enter_context(discreet())
            tls = attested(
                client_tls(self.invitation, self.config.tls, self.node),
                self.invitation,
                self.node,
                seconds=self.config.trunk.connect_timeout,
            )
            self.device = resolve_device(self.node.device, key="the node config's device")
            stack.enter_context(numbers_from(self.device, self.seed))
            self._source = model_source(
                self.config, self.invitation, self.node, tls, self._open_delivery
            )
            self._session = stack.enter_context(
                open_session(
                    self._opening,
                    self.config,
                    self.node,
                    self._source,
                    device=self.device,
                    silo=self.silo,
                    seed=self.seed,
                    tls=tls,
                    connect=self._connect,
                    cost=self._cost,
                    trunk_parameters=self._trunk_parameters,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(exc_type, exc, traceback)

    @property
    def model(self) -> nn.Module:
        """The silo's part of the model, with the trunk attached."""
        return self._session.model

    @property
    def transport(self) -> Transport:
        """The silo's end of the stream to the trunk."""
        return self._session.transport

    @property
    def server_round(self) -> int:
        """The federated round, from 1; 0 for the evaluation before the first."""
        return self.invitation.ticket.server_round

    @property
    def silo(self) -> str:
        """The silo's name: `silo` of its node config, else its partition id, else its node id."""
        return self.node.name(self._context.node_id)

    @property
    def seed(self) -> int:
        """A seed of this silo's own in this round, made from the run's."""
        return derive_seed(self.config.seed, "session", self.server_round, self.silo)

    @property
    def data(self) -> SiloBatches:
        """The silo's tokenised data, made once a process.

        Raises:
            DataError: it is missing, empty or broken.
        """
        if self._data is None:
            self._data = silo_batches(self.config, self.node, self._source, self._context.state)
        return self._data

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return silo_tokenizer(self._source) if self._data is None else self._data.tokenizer

    @property
    def optimizer(self) -> SplitAdamW:
        """AdamW over both sides of the cut; its `step()` also clips by the global norm, and adds
        before that what the strategy adds to the gradients (FedProx, SCAFFOLD).

        It resumes from the silo's last round that counted, unless `train.keep-optimizer` is off.
        """
        if self.invitation.purpose != "train":
            raise SequenceError("an evaluation session has no optimizer: nothing is trained in it")
        if self._optimizer is None:
            self._optimizer = SplitAdamW(
                self.model,
                lr=self.config.train.learning_rate,
                correct=self._session.adapter.correct_gradients,
            )
            self._session.resuming.restore(self._optimizer)
            if (account := self._session.steps) is not None:
                steps = steps_in_round(self.config.train, len(self.data.train(self.server_round)))
                left = self.invitation.num_rounds - self.server_round + 1
                account.begin(examples=self.data.num_train, steps=steps, rounds_left=left)
                self._optimizer.count_steps(account.taking)
        return self._optimizer

    def autocast(self) -> AbstractContextManager[None]:
        """What a loop of one's own puts around the forward pass, for `train.autocast` to hold."""
        return autocasting(self.device, self._autocast)

    def train_batches(self) -> Iterator[Batch]:
        """The round's microbatches: `input_ids`, `attention_mask`, `labels`, all (B, T) int64.

        On the session's device; packed rows have `position_ids` in place of the mask. As many as
        `train.local-steps` or `train.local-epochs` ask for, and always the same ones.
        """
        train = self.config.train
        one_pass = self.data.train(self.server_round)
        repeat = itertools.repeat
        passes = repeat(one_pass) if train.local_steps else repeat(one_pass, train.local_epochs)
        batches = itertools.chain.from_iterable(passes)
        wanted = itertools.islice(batches, train.local_steps * train.accumulation or None)
        return (to_device(batch, self.device) for batch in wanted)

    def train_steps(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        """The same microbatches by optimizer step, `train.accumulation` to each.

        A pass over the data ends with a step over fewer. DP-SGD draws every step's, maybe none.
        """
        train, one_pass = self.config.train, self.data.train(self.server_round)
        steps = steps_of(one_pass, train.accumulation, steps_in_round(train, len(one_pass)))
        there = ([to_device(batch, self.device) for batch in step] for step in steps)
        return self._drawn.noting(there)

    def accumulate(self, microbatches: Sequence[Batch]) -> StepLoss:
        """Add the gradient of one optimizer step to the gradients of the model's parameters.

        That of the mean loss over the target tokens of all its microbatches, of which
        `train.in-flight` are on their way through the trunk at once: the gradient does not depend
        on how many. To be called once for each step; the model is in training mode meanwhile. With
        DP-SGD it adds every example's clipped gradient, in evaluation mode.

        Raises:
            DataError: no microbatch has a target token.
            DivergenceError: a microbatch's loss is not finite.
            TrunkError: the trunk is gone.
            SequenceError: with DP-SGD, the microbatches are not those that the step has drawn.
        """
        if private := bool(self.config.dp.noise):
            self._drawn.use(microbatches, self.optimizer.steps)
        if self._gradients is None:
            train = self.config.train
            steps = steps_in_round(train, len(self.data.train(self.server_round)))
            self._gradients = Accumulator(
                self.model,
                stages=stages_of(self.model, autocast=self._autocast, measures=True),
                in_flight=train.in_flight,
                seed=self.seed,
                first_step=steps * (self.server_round - 1),
                task=self.config.model.task,
                clipped=private,
            )
        with mode(self.model, training=not private):
            return self._gradients.add(microbatches)

    def eval_batches(self) -> Iterator[Batch]:
        """The held-out data, as `train_batches` gives the training data."""
        return (to_device(batch, self.device) for batch in self.data.held_out())

    def train(self) -> TrainMetrics:
        """Train for one round as the run config says.

        Raises:
            DataError: the silo has no data.
            ModelError: the training diverged.
            AdapterError: AdaLoRA's schedule does not fit the silo's steps.
            TrunkError: the trunk is gone.
        """
        batches = self.data.train(self.server_round)
        steps = steps_in_round(self.config.train, len(batches))
        check_last_allocation(self.model, steps, self.invitation.num_rounds)
        label = f"round {self.server_round}, silo {self.silo}"
        with show_progress(label, steps) as progress:
            return train_round(
                self.model,
                self.optimizer,
                batches,
                self.config.train,
                stages=stages_of(self.model, autocast=self._autocast),
                seed=self.seed,
                first_step=steps * (self.server_round - 1),
                total_steps=steps * self.invitation.num_rounds,
                progress=progress,
                task=self.config.model.task,
            )

    def evaluate(self) -> EvalMetrics:
        """Loss and accuracy on the held-out data, and perplexity or a classifier's F1."""
        return evaluate(
            self.model,
            self.eval_batches(),
            stages=stages_of(self.model, autocast=self._autocast),
            depth=self.config.train.in_flight,
            task=self.config.model.as_task(),
        )

    def generate(self, prompt: str, max_new_tokens: int = SAMPLE_TOKENS) -> str:
        """`prompt` continued greedily through the trunk; the reply carries it as the sample.

        Raises:
            ModelError: the run's task is not to continue texts.
        """
        if (task := self.config.model.task) != CAUSAL_LM:
            raise ModelError(
                f"model.task {task!r} continues no text: call session.model on session.eval_batches"
            )
        with self.autocast():
            self._sample = _continued(self.model, self.tokenizer, prompt, max_new_tokens)
        return self._sample

    def reply(
        self, metrics: Mapping[str, Metric] | None = None, *, num_examples: int | None = None
    ) -> Message:
        """End the session and make the reply: adapters, metrics, and what the session cost.

        Return it right away: a round goes on without a silo whose reply has not followed its
        session's end for a minute.

        Args:
            metrics: Of this round; every silo must report the same names.
            num_examples: Weight of this silo in averages; None takes the number of its training
                or held-out examples.

        Raises:
            TrunkError: the trunk does not confirm the session.
            StateError: the silo's personal tensors cannot be saved.
            AdapterError: tensors were trained that are not in the adapter, or on one side alone.
        """
        trained = self.invitation.purpose == "train"
        if num_examples is None:
            num_examples = self.data.num_train if trained else self.data.num_held_out
        session = self._session
        if trained:
            session.check_sent()
        summary = find_remote(session.model).finish()
        session.resuming.end(self._optimizer, summary.steps, session.adapter)
        content = RecordDict()
        if trained:
            content[self._opening.array_key] = ArrayRecord(session.adapter.sent())
            if session.scaling is not None:
                content[LORA_RECORD] = ConfigRecord(dict(scaling_fields(session.scaling).items()))
        content["metrics"] = MetricRecord({"num-examples": num_examples, **(metrics or {})})
        content[SPLIT_RECORD] = ConfigRecord(
            {
                PROOF: self.invitation.proof(),
                **self._source.statistics,
                **self._cost.report(session.transport, summary, resumed=session.resuming.resumed),
                **({} if session.noise is None else session.noise.close()),
                **({} if session.steps is None else session.steps.close()),
                **({"sample": self._sample} if self._sample else {}),
            }
        )
        if session.ledger is not None:
            session.ledger.note_reply(content)
        return Message(content, reply_to=self._message)


def _continued(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int
) -> str:
    """`prompt` with its most likely continuation."""
    encoded = torch.tensor([encode_prompt(tokenizer, prompt)], device=device_of(model))
    with mode(model, training=False), torch.no_grad():
        ids = model.generate(  # type: ignore[operator]
            encoded,
            attention_mask=torch.ones_like(encoded),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))
