"""F2: learned inverters, trained on public text through the same defence, and whether they have
converged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flower_split.audit.inverter import Inverter
from flower_split.audit.nearest import AT_ONCE, Embeddings
from flower_split.audit.recording import Recording
from flower_split.audit.texts import AuditTexts

HELD_OUT = 0.15
EVERY = 25
"""Steps between looks at the held-out loss."""
BETTER = 0.01
"""Relative fall of the held-out loss that counts as one."""
PATIENCE = 2
"""Looks without such a fall after which the learning rate is lowered."""
LOWERED = 2
"""Times that it is lowered; after the last one the inverter has converged."""
DONE = 1e-3
"""Held-out loss, in nats, with which an inverter has converged: there is nothing left to learn."""
RATE = 2e-3
TOKENS = 1024
"""Of a step."""
WHOLE = 4096
"""Tokens of a vocabulary at most that is told apart as a whole."""
NEGATIVES = 1024
"""Tokens drawn at random beside the right ones, where it is larger."""
RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """An inverter, and how its training ended."""

    architecture: str
    network: Inverter
    steps: int
    converged: bool
    """Whether its held-out loss had stopped to fall."""
    loss: float
    """Held-out, in nats, among the tokens that it is trained to tell apart."""

    def logits(self, recording: Recording, rows: Tensor) -> Tensor:
        """(B, T, V) of the rows of a recording."""
        with torch.no_grad():
            made = self.network(recording.h1[rows], recording.mask[rows])
            return self.network.scores(made)

    def reconstruct(self, recording: Recording, check: Callable[[], None]) -> Tensor:
        """(N, T) int64: the likeliest token at every place."""
        count, tokens, _ = recording.h1.shape
        size = max(1, AT_ONCE // (tokens * len(self.network.table)))
        found = list[Tensor]()
        for begin in range(0, count, size):
            check()
            rows = torch.arange(begin, min(begin + size, count))
            found.append(self.logits(recording, rows).argmax(-1))
        return torch.cat(found)


def fit(
    architecture: str,
    public: Recording,
    texts: AuditTexts,
    known: Embeddings,
    *,
    most_steps: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Fitted:
    """Train an inverter on the h1 of public texts, until its held-out loss no longer falls.

    Args:
        architecture: One of `ARCHITECTURES`.
        public: Recording of `texts.public` through the defence that is attacked.
        texts: With the public texts.
        known: The model's embeddings.
        most_steps: At which an inverter that still gets better is left under-trained.
        seed: Of what is drawn.
        check: Called at every step.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, scored = texts.public.ids, texts.public.scored
    held = max(2, round(HELD_OUT * len(ids)))
    order = torch.randperm(len(ids), generator=generator)
    held_out, rows = order[:held], order[held:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _network(architecture, public, texts, known, rows)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
    size = max(1, TOKENS // ids.shape[1])
    best, waited, lowered, step = float("inf"), 0, 0, 0

    def loss_of(of: Tensor, drawn: torch.Generator) -> Tensor:
        mask = scored[of]
        made = network(public.h1[of], public.mask[of])[mask]
        right = ids[of][mask]
        among = _among(right, texts.vocabulary, drawn)
        if among is None:
            return F.cross_entropy(network.scores(made), right)
        return F.cross_entropy(network.scores(made, among), torch.searchsorted(among, right))

    def held_out_loss() -> float:
        drawn = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            losses = [loss_of(part, drawn) for part in held_out.split(size)]
        return float(torch.stack(losses).mean())

    best = held_out_loss()
    while step < most_steps and lowered < LOWERED and best > DONE:
        check()
        picked = rows[torch.randint(0, len(rows), (size,), generator=generator)]
        optimizer.zero_grad(set_to_none=True)
        loss_of(picked, generator).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % EVERY:
            continue
        now = held_out_loss()
        if now < best * (1 - BETTER):
            best, waited = now, 0
            continue
        waited += 1
        if waited >= PATIENCE:
            waited, lowered = 0, lowered + 1
            for group in optimizer.param_groups:
                group["lr"] /= 4
    return Fitted(
        architecture=architecture,
        network=network.eval(),
        steps=step,
        converged=lowered >= LOWERED or best <= DONE,
        loss=best,
    )


def _network(
    architecture: str, public: Recording, texts: AuditTexts, known: Embeddings, rows: Tensor
) -> Inverter:
    """With a linear map that ridge regression of embeddings on h1 gives."""
    scored = texts.public.scored[rows]
    seen, right = public.h1[rows][scored].double(), texts.public.ids[rows][scored]
    mean, scale = seen.mean(0), seen.std(0).clamp_min(1e-6)
    table = known.table.double()
    table = F.normalize(table - table.mean(0), dim=1)
    given = (seen - mean) / scale
    gram = given.T @ given
    gram += RIDGE * len(given) * torch.eye(len(gram), dtype=gram.dtype)
    start = torch.linalg.solve(gram, given.T @ table[right])
    return Inverter(
        architecture,
        mean=mean.float(),
        scale=scale.float(),
        start=start.float(),
        table=table.float(),
        prior=texts.prior,
        tokens=public.h1.shape[1],
    )


def _among(right: Tensor, vocabulary: int, drawn: torch.Generator) -> Tensor | None:
    """The tokens, in order, that a step tells apart; None for all."""
    if vocabulary <= WHOLE:
        return None
    others = torch.randint(0, vocabulary, (NEGATIVES,), generator=drawn)
    among: Tensor = torch.cat([right, others]).unique()
    return among
