"""B2 and B3: the labels, out of the gradient at the top cut, by who has the current top.

With logits z = f(h2), P = softmax(z), one-hot labels Y and n targets, the gradient is
G = Jᵀ(P - Y) / n, where J is the Jacobian of f at h2 and only rows with a target count. So
R = JᵀP - n G = Jᵀ Y is known. One backward pass makes JᵀP, and one forward-mode pass scores every
label by (J R). Refined, Y is what solves Jᵀ Y = R on the simplex.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flower_split.audit.attacks.rows import with_loss
from flower_split.audit.recording import Recording
from flower_split.audit.texts import Documents

STEPS = 25
"""Refinements."""
ROWS = 8
"""That are computed at once."""

Top = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelsFound:
    """What is believed of every label, (N, T) int64: the token that follows each place."""

    guess: Tensor
    """The model's own, without the gradient."""
    one_pass: Tensor
    refined: Tensor | None
    logits: Tensor | None
    """(N, T, V): logarithms of what the refinement believes; None without one."""


def find_labels(
    recording: Recording,
    documents: Documents,
    top: Top,
    *,
    refine: bool = True,
    steps: int = STEPS,
    check: Callable[[], None] = lambda: None,
) -> LabelsFound:
    """The labels of a recording.

    Which rows have a target is taken as known: of plain texts the mask tells it, and of others the
    norms tell something (B1).

    Args:
        recording: With gradients.
        documents: Whose labels they are; read for which rows have a target alone.
        top: Logits, (B, T, V), with a graph, of h2 and mask.
        refine: Whether the second attack is made too.
        steps: Of its refinement.
        check: Called now and then.
    """
    if recording.h2 is None or recording.g2 is None:
        raise ValueError("a recording without gradients has no labels")
    target = with_loss(documents.learnt)
    guess, passed, refined, believed = [], [], list[Tensor](), list[Tensor]()
    for begin, end in recording.groups:
        count = int(target[begin:end].sum())
        for rows in _parts(begin, end):
            check()
            mask = recording.mask[rows]
            attack = _Attack(
                top, recording.h2[rows], mask, target[rows], count * recording.g2[rows]
            )
            guess.append(attack.logits.argmax(-1))
            scores = attack.forward(attack.residual)
            passed.append(scores.argmax(-1))
            if refine:
                found = attack.refined(scores, steps, check)
                refined.append(found.argmax(-1))
                believed.append(found)
    return LabelsFound(
        guess=torch.cat(guess),
        one_pass=torch.cat(passed),
        refined=torch.cat(refined) if refine else None,
        logits=torch.cat(believed) if refine else None,
    )


class _Attack:
    """On the rows of one microbatch, or a part of them: a row's labels are in its gradient alone.

    Args:
        top: As for `find_labels`.
        hidden: h2, (B, T, H).
        mask: (B, T).
        target: (B, T): rows with a target.
        scaled: n G, (B, T, H).
    """

    def __init__(
        self, top: Top, hidden: Tensor, mask: Tensor, target: Tensor, scaled: Tensor
    ) -> None:
        # The fused kernels of attention cannot be derived twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._hidden = hidden.detach().clone().requires_grad_()
            made = top(self._hidden, mask)
            self._cotangent = torch.zeros_like(made, requires_grad=True)
            self._made = made
            (self._back,) = torch.autograd.grad(
                made, self._hidden, self._cotangent, create_graph=True
            )
        self.logits = made.detach().cpu()
        self._target = target[..., None]
        self.residual = self.backward(self.logits.softmax(-1) * self._target) - scaled

    def backward(self, cotangent: Tensor) -> Tensor:
        """Jᵀ Q: (B, T, H) of (B, T, V)."""
        given = cotangent.to(self._made.device)
        (made,) = torch.autograd.grad(self._made, self._hidden, given, retain_graph=True)
        return made.detach().cpu()

    def forward(self, tangent: Tensor) -> Tensor:
        """J R: (B, T, V) of (B, T, H), by deriving Jᵀ Q, which is linear in Q, at Q."""
        given = tangent.to(self._back.device)
        (made,) = torch.autograd.grad(self._back, self._cotangent, given, retain_graph=True)
        return made.detach().cpu()

    def refined(self, scores: Tensor, steps: int, check: Callable[[], None]) -> Tensor:
        """(B, T, V): logarithms of the Q on the simplex for which Jᵀ Q is nearest to the residual.

        Exponentiated gradient, with a step at each place of its own that grows while the residual
        there falls. It begins at the model's own guess, moved by the scores of the one-pass attack.
        """
        spread = scores.std(-1, keepdim=True).clamp_min(1e-12)
        believed = (self.logits.log_softmax(-1) + scores / spread).log_softmax(-1)
        best, rate = believed, 1.0 / spread
        least = torch.full(scores.shape[:2], float("inf"))
        for _ in range(steps):
            check()
            gap = self.backward(believed.exp() * self._target) - self.residual
            error = gap.norm(dim=-1)
            better = (error < least)[..., None]
            best = torch.where(better, believed, best)
            least = torch.minimum(error, least)
            rate = torch.where(better, rate * 1.3, rate * 0.5)
            believed = (best - rate * self.forward(gap)).log_softmax(-1)
        return best


def _parts(begin: int, end: int) -> Iterator[slice]:
    for at in range(begin, end, ROWS):
        yield slice(at, min(at + ROWS, end))


def right_labels(found: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
    """Labels that are right, and all there are, (N,) each, by document."""
    target = with_loss(documents.learnt)
    ids = torch.zeros_like(documents.ids)
    ids[:, :-1] = documents.ids[:, 1:]
    return ((found == ids) & target).sum(1), target.sum(1)


def as_text(found: Tensor, believed: Tensor) -> Tensor:
    """Scores of tokens, (N, T, V), out of those of labels and what an inverter believes.

    A label is the token of the next place.
    """
    shifted = torch.zeros_like(believed)
    shifted[:, 1:] = found[:, :-1]
    return believed + shifted
