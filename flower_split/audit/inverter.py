"""The inverter's network: from the h1 of a whole row to a score for every token at each place."""

import torch
from torch import Tensor, nn

ARCHITECTURES = ("linear", "GRU", "transformer")
LEAST_WIDTH, MOST_WIDTH = 96, 256
HEADS = 4
BLOCKS = 2


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
