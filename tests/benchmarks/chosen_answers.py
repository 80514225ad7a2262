"""A trunk that answers another h2 than the honest one: what it gains for finding labels.

::

    python tests/benchmarks/chosen_answers.py [--model DIR] [--top 1] [--documents 16] [--tokens 24]
        [--noise 0 1 3] [--out FILE]

What a silo's bottom learns comes of g1 alone, which a hijacking trunk (H1) answers freely anyway;
so another h2 can only change g2, of which labels are found. Beside the honest h2 the trunk answers
the same row at every place, by which all of them have one known Jacobian, random rows as long as
honest ones, and honest rows of a tenth of their length, whose gradients are longer. Labels are
looked for as in B2 (in one pass) and B3 (refined), without noise, and with rows of g2 clipped to
their median norm and noise of so many times that as the length of a row.
"""

import argparse
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flower_split.audit import AuditSettings
from flower_split.audit.attacks.labels import find_labels, right_labels
from flower_split.audit.subject import CutModel, open_subject
from flower_split.audit.texts import AuditTexts, load_texts
from flower_split.config.run_config import read_run_config
from flower_split.config.wire import WireConfig
from flower_split.segments import load_skeleton, load_tokenizer, table_sizes
from flower_split.transport.base import BackendSession, TrunkBackend
from flower_split.transport.messages import (
    ForwardReply,
    ForwardRequest,
    Reply,
    Request,
    SessionSpec,
    Ticket,
)

QUICKSTART = "flower_split.quickstart:base"
Choice = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One h2 under one noise."""

    answered: str
    noise: float
    """Length of a row of it over that of the clipped signal."""
    one_pass: float
    """Share of labels."""
    refined: float


class Answering:
    """A `TrunkBackend` before another one, whose h2 is changed.

    Args:
        inner: Computes as an honest trunk.
        choice: Another h2, (B, T, H), of the honest one.
    """

    def __init__(self, inner: TrunkBackend, choice: Choice) -> None:
        self._inner = inner
        self._choice = choice

    def open(self, spec: SessionSpec, ticket: Ticket | None) -> "Future[BackendSession]":
        """A session whose h2 is changed."""
        return _done(_Session(self._inner.open(spec, ticket).result(), self._choice))


class _Session:
    resumed, depth = "", 1

    def __init__(self, inner: BackendSession, choice: Choice) -> None:
        self._inner = inner
        self._choice = choice

    def submit(self, request: Request) -> Future[Reply]:
        """Answer as the inner session does, but for h2."""
        future = self._inner.submit(request)
        if not isinstance(request, ForwardRequest):
            return future
        reply = future.result()
        if isinstance(reply, ForwardReply):
            return _done(replace(reply, hidden=self._choice(reply.hidden)))
        return _done(self._choice(reply) if isinstance(reply, Tensor) else reply)

    def close(self) -> Future[None]:
        """Leave."""
        return self._inner.close()


def choices(h2: Tensor, mask: Tensor) -> dict[str, Choice]:
    """What is answered, by its name; of a recording's honest h2, (N, T, H)."""
    drawn = torch.Generator().manual_seed(0)
    hidden, typical = h2.shape[-1], float(h2[mask].norm(dim=-1).median())

    def of_length(rows: Tensor, lengths: Tensor | float) -> Tensor:
        return rows / rows.norm(dim=-1, keepdim=True) * lengths

    one = of_length(torch.randn(hidden, generator=drawn), typical)
    return {
        "honest": lambda honest: honest,
        "the same row everywhere": lambda honest: one.to(honest).expand_as(honest).clone(),
        "random rows": lambda honest: of_length(
            torch.randn(honest.shape, generator=drawn).to(honest),
            honest.norm(dim=-1, keepdim=True),
        ),
        "a tenth of the honest rows": lambda honest: 0.1 * honest,
    }


def lines(model: CutModel, texts: AuditTexts, noises: Sequence[float]) -> Iterator[Line]:
    """A line for every noise and h2."""
    honest = model.record(texts.victims, WireConfig(), seed=0)
    assert honest.h2 is not None and honest.g2 is not None
    norms = honest.g2.norm(dim=-1)
    clip = float(norms[norms > 0].median())
    for noise in noises:
        wire = WireConfig()
        if noise:
            wire = WireConfig(g2_clip=clip, g2_noise=noise / math.sqrt(honest.g2.shape[-1]))
        for name, choice in choices(honest.h2, honest.mask).items():

            def between(backend: TrunkBackend, choice: Choice = choice) -> TrunkBackend:
                return Answering(backend, choice)

            recording = model.record(texts.victims, wire, seed=0, between=between)
            with model.tops() as top:
                made = find_labels(recording, texts.victims, top)
            assert made.refined is not None
            yield Line(
                answered=name,
                noise=noise,
                one_pass=_share(made.one_pass, texts),
                refined=_share(made.refined, texts),
            )


def _share(found: Tensor, texts: AuditTexts) -> float:
    right, of = right_labels(found, texts.victims)
    return float(right.sum() / of.sum())


def _done(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


@contextmanager
def opened(
    name: str, *, bottom: int, top: int, documents: int, tokens: int
) -> Iterator[tuple[CutModel, AuditTexts]]:
    """A model at a cut, and the texts of which labels are looked for."""
    config = read_run_config(
        {"model.name": name, "split.bottom-layers": bottom, "split.top-layers": top}
    )
    sizes = load_skeleton(name).config
    subject = open_subject(
        config,
        layers=sizes.num_hidden_layers,
        hidden=sizes.hidden_size,
        adapter=None,
        device="cpu",
    )
    asked = AuditSettings(documents=documents, tokens=tokens, public_documents=16)
    texts = load_texts(config, asked, load_tokenizer(name), table_sizes(name))
    with subject.cut(bottom, top) as model:
        yield model, texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every noise and h2, and write all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=QUICKSTART)
    parser.add_argument("--bottom", type=int, default=2)
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--noise", type=float, nargs="*", default=(0.0, 1.0, 3.0))
    parser.add_argument("--out", type=Path)
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    subject = opened(
        asked.model,
        bottom=asked.bottom,
        top=asked.top,
        documents=asked.documents,
        tokens=asked.tokens,
    )
    told = {
        "command": shlex.join(["python", "tests/benchmarks/chosen_answers.py", *given]),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "model": asked.model,
    }
    found = list[Line]()
    print("noise   one pass   refined   h2")
    with subject as (model, texts):
        for line in lines(model, texts, asked.noise):
            found.append(line)
            print(f"{line.noise:5g} {line.one_pass:10.1%} {line.refined:9.1%}   {line.answered}")
    if asked.out is not None:
        content = {**told, "lines": [asdict(one) for one in found]}
        asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
