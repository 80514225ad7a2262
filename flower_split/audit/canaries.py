"""M1: canaries in the adapter. Made-up records, half of which are trained on, told apart by it.

Whoever has the adapter and the base model looks at what it made of each record's loss (Carlini et
al., arXiv:1802.08232; Jagielski et al., arXiv:2006.07709).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flower_split.adapters import resolve_plan, wrap
from flower_split.audit.subject import Subject, loaded
from flower_split.audit.texts import Documents
from flower_split.optimization.loss import IGNORED
from flower_split.optimization.settings import OptimizerSettings
from flower_split.remote import SplitAdamW, SplitStages, attach_trunk, session_spec
from flower_split.segments import load_skeleton, load_trunk
from flower_split.server.engine import TrunkEngine
from flower_split.server.local import LocalTransport
from flower_split.training.loop import train_round

CANARIES = 32
"""Trained on, and as many that are not."""
FALSE = 0.01
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class CanariesTold:
    """How well canaries that were trained on are told from others."""

    tpr: float
    """Share of those that were, at 1 % of the others taken for them."""
    epsilon: float
    """No run that is (ε, 0)-differentially private for a record has a smaller ε, at 95 %
    confidence; 0 tells nothing."""
    count: int
    steps: int


def told_apart(inside: Tensor, outside: Tensor) -> tuple[float, float]:
    """The true-positive rate at 1 % false ones, and the least ε at 95 % confidence.

    Args:
        inside: (K,): scores of canaries that were trained on; larger ones are believed more.
        outside: (K,): of those that were not.
    """
    allowed = math.floor(FALSE * len(outside))
    threshold = outside.sort(descending=True).values[allowed]
    found = int((inside > threshold).sum())
    false = int((outside > threshold).sum())
    each = (1 - CONFIDENCE) / 2
    low = _clopper_pearson(found, len(inside), each, upper=False)
    high = _clopper_pearson(false, len(outside), each, upper=True)
    return found / len(inside), max(0.0, math.log(low / high)) if low > 0 else 0.0


def tell_canaries(
    subject: Subject,
    victims: Documents,
    canaries: Documents,
    *,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> CanariesTold:
    """Train an adapter as a silo alone would, on its texts and half of the canaries.

    From the start, by the run's own loop and settings, as often as its rounds have passes.

    Args:
        subject: What is audited.
        victims: The silo's texts.
        canaries: Of which the first half is trained on.
        seed: Of the order of the batches.
        check: Called after every step.
    """
    config = subject.config
    train = config.train
    half = len(canaries) // 2
    size = train.batch_size
    batches = [
        of.batch(range(begin, min(begin + size, count)))
        for of, count in ((victims, len(victims)), (canaries, half))
        for begin in range(0, count, size)
    ]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = [batches[place] for place in order]
    skeleton = load_skeleton(config.model.name, revision=config.model.revision)
    plan = resolve_plan(skeleton, config.lora, config.peft)
    split = config.split
    trunk = load_trunk(
        bottom_layers=split.bottom_layers,
        top_layers=split.top_layers,
        **loaded(config.model, subject.device),
    )
    optimizer = OptimizerSettings.of_training(train)
    engine = TrunkEngine(trunk, plan=plan, mode="shared", optimizer=optimizer)
    client: Any = wrap(subject.client(split.bottom_layers, split.top_layers), plan)
    spec = session_spec(
        client, plan=plan, trunk_adapters="shared", wire=config.wire, optimizer=optimizer
    )
    with LocalTransport(engine, spec) as transport:
        attach_trunk(client, transport)
        before = _losses(client, canaries)
        done = train_round(
            client,
            SplitAdamW(client, lr=train.learning_rate),
            batches * config.num_server_rounds,
            train,
            stages=SplitStages(client),
            seed=seed,
            progress=lambda _: check(),
        )
        scores = before - _losses(client, canaries)
    tpr, epsilon = told_apart(scores[:half], scores[half:])
    return CanariesTold(tpr=tpr, epsilon=epsilon, count=half, steps=done.steps)


def _losses(client: Any, of: Documents) -> Tensor:
    """(N,): the mean loss of every text."""
    found = list[Tensor]()
    client.eval()
    device = next(client.parameters()).device
    with torch.no_grad():
        for begin in range(0, len(of), 8):
            batch = of.batch(range(begin, min(begin + 8, len(of))))
            labels = batch.pop("labels")[:, 1:]
            placed = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = client(**placed, use_cache=False).logits[:, :-1].float().cpu()
            losses = F.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
            )
            found.append(losses.sum(1) / (labels != IGNORED).sum(1).clamp_min(1))
    return torch.cat(found)


def _clopper_pearson(hits: int, of: int, tail: float, *, upper: bool) -> float:
    """The bound of a binomial share beyond which what was seen has less than the chance `tail`."""
    if hits == (of if upper else 0):
        return 1.0 if upper else 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        at_most = _at_most(hits if upper else hits - 1, of, share)
        # Chance of as few (upper) or as many (lower) as were seen.
        chance = at_most if upper else 1 - at_most
        if (chance > tail) == upper:
            low = share
        else:
            high = share
    return (low + high) / 2


def _at_most(hits: int, of: int, share: float) -> float:
    return sum(
        math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(max(0, hits + 1))
    )
