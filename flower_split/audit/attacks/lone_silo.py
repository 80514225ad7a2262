"""A silo that trains alone in this process, from the start of the run's adapter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flower_split.adapters import resolve_plan, wrap
from flower_split.audit.subject import CutModel, Subject, loaded
from flower_split.audit.texts import Documents
from flower_split.config.wire import WireConfig
from flower_split.optimization.loss import IGNORED
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk, session_spec
from flower_split.segments import load_skeleton, load_trunk
from flower_split.server.engine import TrunkEngine
from flower_split.training.batch import Batch
from flower_split.training.loop import steps_in_round, train_round
from flower_split.transport.base import TrunkBackend
from flower_split.transport.local import InProcessTransport

ROWS = 8
"""Texts of which losses are computed at once."""


class LoneSilo:
    """The silo and the adapter that it trains, by the run's own loop and settings.

    Args:
        subject: What is audited.
        client: The client model, as PEFT wraps it, with a trunk attached.
        engine: The trunk's host.
    """

    def __init__(self, subject: Subject, client: Any, engine: TrunkEngine) -> None:
        self._subject = subject
        self._client = client
        self._engine = engine
        self._optimizer = SplitAdamW(client, lr=subject.config.train.learning_rate)

    def train(
        self,
        batches: Sequence[Batch],
        *,
        seed: int,
        steps: int = 0,
        rate: float = 0.0,
        check: Callable[[], None] = lambda: None,
    ) -> int:
        """Steps over the batches, pass after pass in their order; how many.

        Args:
            batches: Microbatches of a pass.
            seed: Of the random numbers.
            steps: How many; 0 for those of all of the run's rounds.
            rate: The learning rate, without a schedule; 0 for what the run says.
            check: Called after every step.

        Raises:
            DivergenceError: a loss or a gradient is not finite.
        """
        config = self._subject.config
        train = config.train
        if rate:
            train = replace(train, learning_rate=rate, schedule="constant", warmup_steps=0)
        rounds = config.num_server_rounds * steps_in_round(train, len(batches))
        train = replace(train, local_steps=steps or rounds)
        done = train_round(
            self._client,
            self._optimizer,
            batches,
            train,
            stages=SplitStages(self._client),
            seed=seed,
            progress=lambda _: check(),
        )
        return done.steps

    def losses(self, of: Documents, counted: Tensor | None = None) -> Tensor:
        """(N,): the mean loss of every text.

        Args:
            of: N texts of T tokens.
            counted: (N, T) of bool: tokens of which it is; None for all that have a loss.
        """
        found = list[Tensor]()
        self._client.eval()
        device = next(self._client.parameters()).device
        with torch.no_grad():
            for begin in range(0, len(of), ROWS):
                rows = range(begin, min(begin + ROWS, len(of)))
                batch = of.batch(rows)
                labels = batch.pop("labels")
                if counted is not None:
                    own = counted[rows.start : rows.stop, : labels.shape[1]]
                    labels = labels.masked_fill(~own, IGNORED)
                labels = labels[:, 1:]
                placed = {name: tensor.to(device) for name, tensor in batch.items()}
                logits = self._client(**placed, use_cache=False).logits[:, :-1].float().cpu()
                losses = F.cross_entropy(
                    logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
                )
                found.append(losses.sum(1) / (labels != IGNORED).sum(1).clamp_min(1))
        return torch.cat(found)

    def recorder(self) -> CutModel:
        """What records it, with the adapter as it is by then; nothing is trained afterwards."""
        return CutModel(self._subject.config, self._client, self._engine)


@contextmanager
def lone_silo(
    subject: Subject,
    wire: WireConfig,
    *,
    between: Callable[[TrunkBackend], TrunkBackend] = lambda backend: backend,
) -> Iterator[LoneSilo]:
    """A silo whose adapter begins, in a session that ends with the block.

    Args:
        subject: What is audited; its trained adapter is left out.
        wire: Between silo and trunk.
        between: Makes of the trunk's host what the silo takes for it.
    """
    config = subject.config
    skeleton = load_skeleton(config.model.name, revision=config.model.revision)
    plan = resolve_plan(skeleton, config.lora, config.peft)
    split = config.split
    trunk = load_trunk(
        bottom_layers=split.bottom_layers,
        top_layers=split.top_layers,
        **loaded(config.model, subject.device),
    )
    optimizer = OptimizerSettings.of_training(config.train)
    engine = TrunkEngine(trunk, plan=plan, mode="shared", optimizer=optimizer)
    client: Any = wrap(subject.client(split.bottom_layers, split.top_layers), plan)
    spec = session_spec(client, plan=plan, trunk_adapters="shared", wire=wire, optimizer=optimizer)
    transport = InProcessTransport(between(engine), spec)
    transport.limits = engine.limits
    try:
        attach_trunk(client, transport)
        yield LoneSilo(subject, client, engine)
    finally:
        transport.close()


def batches_of(of: Documents, size: int, *, rows: int = 0) -> list[Batch]:
    """Microbatches of `size` texts, of the first `rows` of them; 0 for all."""
    count = rows or len(of)
    return [of.batch(range(at, min(at + size, count))) for at in range(0, count, size)]
