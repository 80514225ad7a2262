"""B1: what the norms of the gradient's rows tell: which tokens a loss is computed of."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flower_split.audit.recording import Recording
from flower_split.audit.texts import Documents


@dataclass(frozen=True, kw_only=True)
class RowsTold:
    """How well targets are told from other rows by the norm of their gradient."""

    auc: float
    """Chance that a random row with a loss has a larger norm than a random one without: 0.5 tells
    nothing, 1 everything."""
    zero_rows: float
    """Share of rows without a loss that are zero."""
    others: int
    """Rows without a loss: padding, prompts, and each text's last token."""


def rows_told(recording: Recording, documents: Documents) -> RowsTold | None:
    """What norms tell of a recording; None where every row has a loss, or none was recorded."""
    if recording.g2 is None:
        return None
    norms = recording.g2.norm(dim=-1)
    target = with_loss(documents.learnt)
    # A row of the batch's padding is there only where the batch was as long.
    sent = _sent(recording)
    yes, no = norms[sent & target], norms[sent & ~target]
    if not len(yes) or not len(no):
        return None
    return RowsTold(auc=_auc(yes, no), zero_rows=float((no == 0).double().mean()), others=len(no))


def with_loss(learnt: Tensor) -> Tensor:
    """(N, T) of bool: rows whose next token is the target of a loss, of `Documents.learnt`."""
    shifted = torch.zeros_like(learnt)
    shifted[:, :-1] = learnt[:, 1:]
    return shifted


def _sent(recording: Recording) -> Tensor:
    lengths = recording.mask.sum(1)
    longest = torch.zeros_like(lengths)
    for begin, end in recording.groups:
        longest[begin:end] = lengths[begin:end].max()
    return torch.arange(recording.mask.shape[1]) < longest[:, None]


def _auc(yes: Tensor, no: Tensor) -> float:
    """Mann and Whitney's: ties count half."""
    below = torch.searchsorted(no.sort().values, yes, right=False).double()
    up_to = torch.searchsorted(no.sort().values, yes, right=True).double()
    return float(((below + up_to) / 2).sum() / (len(yes) * len(no)))
