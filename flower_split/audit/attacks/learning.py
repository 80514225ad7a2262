"""F2: learned inverters, trained on public text through the same defence, and whether they have
converged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flower_split.audit.attacks.nearest import AT_ONCE, Embeddings
from flower_split.audit.recording import Recording
from flower_split.audit.texts import AuditTexts

ARCHITECTURES = ("linear", "GRU", "transformer")
LEAST_WIDTH, MOST_WIDTH = 96, 256
HEADS = 4
BLOCKS = 2
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


class Inverter(nn.Module):
    """Scores of tokens, out of h1, by their likeness to the model's public embeddings.

    What it makes of h1 is compared with every token's embedding, so that tokens are found which
    no public text had. A linear map is under each architecture; the others add to it.

    Args:
        architecture: One of `ARCHITECTURES`.
        mean: (H,): of the public texts' h1.
        scale: (H,): its standard deviation.
        start: (H, E): the linear map to begin with, of h1 less its mean over its scale.
        table: (V, E): the tokens' embeddings, of length 1.
        prior: (V,): how often the public texts have each token.
        tokens: Of the longest row.
    """

    mean: Tensor
    scale: Tensor
    table: Tensor

    def __init__(
        self,
        architecture: str,
        *,
        mean: Tensor,
        scale: Tensor,
        start: Tensor,
        table: Tensor,
        prior: Tensor,
        tokens: int,
    ) -> None:
        super().__init__()
        hidden, size = start.shape
        width = min(max(HEADS * (hidden // HEADS), LEAST_WIDTH), MOST_WIDTH)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("table", table)
        self.linear = nn.Linear(hidden, size, bias=False)
        self.temperature = nn.Parameter(torch.tensor(3.0))
        self.bias = nn.Parameter(prior.log())
        self.body: _Body | None = None
        with torch.no_grad():
            self.linear.weight.copy_(start.T)
        if architecture == "GRU":
            self.body = _Recurrent(hidden, width, size)
        elif architecture == "transformer":
            self.body = _Blocks(hidden, width, size, tokens)

    def forward(self, h1: Tensor, mask: Tensor) -> Tensor:
        """What is compared with embeddings: (B, T, E) of h1, (B, T, H), and mask, (B, T)."""
        given = (h1 - self.mean) / self.scale
        made: Tensor = self.linear(given)
        return made if self.body is None else made + self.body(given, mask)

    def scores(self, made: Tensor, among: Tensor | None = None) -> Tensor:
        """Logits of tokens: (…, V) of what `forward` made, (…, E), or of the tokens `among`."""
        table = self.table if among is None else self.table[among]
        bias = self.bias if among is None else self.bias[among]
        scores: Tensor = self.temperature.exp() * (made @ table.T) + bias
        return scores


class _Body(nn.Module):
    """What is added to the linear map: nothing to begin with."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)


class _Recurrent(_Body):
    def __init__(self, hidden: int, width: int, size: int) -> None:
        super().__init__(2 * width, size)
        self.first = nn.Linear(hidden, width)
        self.inner = nn.GRU(width, width, batch_first=True, bidirectional=True)

    def forward(self, given: Tensor, mask: Tensor) -> Tensor:
        made, _ = self.inner(self.first(given) * mask[..., None])
        passed: Tensor = self.last(made)
        return passed


class _Blocks(_Body):
    def __init__(self, hidden: int, width: int, size: int, tokens: int) -> None:
        super().__init__(width, size)
        self.first = nn.Linear(hidden, width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.inner = nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)

    def forward(self, given: Tensor, mask: Tensor) -> Tensor:
        entered = self.first(given) + self.places[: given.shape[1]]
        made: Tensor = self.last(self.inner(entered, src_key_padding_mask=~mask))
        return made


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
