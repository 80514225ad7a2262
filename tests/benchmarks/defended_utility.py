"""Noise at the cuts while a model is tuned: what it costs in loss, and what attacks find under it.

::

    python tests/benchmarks/defended_utility.py [--folder outputs/real-model] [--steps 12]
        [--batch 8] [--noise 0.1 0.3 1] [--rate 0.001] [--documents 8] [--tokens 16]
        [--set lora.r=1 …] [--out FILE]

A silo of the quickstart on its own, or with a folder that `make demo-real` has made of the real
model. Rows of h1 and g2 are clipped to the median of their norms before the training; noise is in
parts of that, as the length of a row of it. The loss is held-out and passes the same noise, as in
a run. Attacks are those of `flower-split audit` on a step over made-up records under the same
noise, with the inverter trained through it: what the trunk's operator has before the first step.
"""

import argparse
import json
import math
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "bench-throughput"))

import torch
from torch import Tensor
from wires import flat_settings, quickstart_settings

from flower_split.apps.folder.overrides import parse_overrides
from flower_split.audit import AuditSettings, Budget, Policy
from flower_split.audit.attacking import token_shares
from flower_split.audit.attacks.learning import Fitted
from flower_split.audit.attacks.lone_silo import batches_of, lone_silo
from flower_split.audit.describing import described
from flower_split.audit.metrics import best_constant
from flower_split.audit.outcome import Outcome
from flower_split.audit.own_cut import positive_control
from flower_split.audit.subject import Subject, open_subject
from flower_split.audit.texts import AuditTexts, Documents, load_texts
from flower_split.audit.under_way import UnderWay
from flower_split.config.data import DataConfig
from flower_split.config.run_config import read_run_config
from flower_split.config.sections import SplitConfig
from flower_split.config.wire import WireConfig
from flower_split.segments import load_skeleton, load_tokenizer, table_sizes

REAL = Path(__file__).parents[2] / "examples" / "real_model" / "pyproject.toml"
HELD_OUT = 32
"""Texts."""
LENGTH = 64
"""Tokens of a text that is trained on, at most."""
INVERTER = "linear"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One setting of the noise."""

    noise: float | None
    """Length of a row of it over that of the clipped signal; None for neither clip nor noise."""
    before: float
    """Held-out loss, in nats, before the first step, under the same noise."""
    loss: float
    """After the last one."""
    found: dict[str, float]
    """By attack the share of tokens (F) or labels (B), and the model's own guess of labels."""
    converged: bool
    """Whether the inverter has."""


def settings(folder: Path | None, batch: int) -> dict[str, Any]:
    """The run config of the quickstart, or of the real model that is in `folder`."""
    if folder is None:
        return quickstart_settings() | {"train.batch-size": batch}
    place = folder.resolve()
    return flat_settings(REAL) | {
        "model.name": str(place / "model"),
        "data.path": str(place / "questions.jsonl"),
        "data.partitioner": "none",
        "train.batch-size": batch,
        **{f"wire.{hop}": "fp32" for hop in ("h1", "h2", "g2", "g1")},
    }


class Bench:
    """One silo, its texts, and who attacks it.

    Args:
        flat: The run config.
        steps: Of the training.
        documents: Texts that are attacked.
        tokens: Of each, at most.
        public: Texts that the attacker learns from.
    """

    def __init__(
        self, flat: dict[str, Any], *, steps: int, documents: int, tokens: int, public: int
    ) -> None:
        config = read_run_config(flat)
        name, sizes = config.model.name, load_skeleton(config.model.name).config
        self._subject: Subject = open_subject(
            config,
            layers=sizes.num_hidden_layers,
            hidden=sizes.hidden_size,
            adapter=None,
            device="cpu",
        )
        self._steps, self._hidden = steps, sizes.hidden_size
        size = config.train.batch_size

        def texts(of: SplitConfig, asked: AuditSettings) -> AuditTexts:
            return load_texts(of, asked, load_tokenizer(name), table_sizes(name))

        own = AuditSettings(
            documents=steps * size + HELD_OUT, tokens=LENGTH, public_documents=public, seed=1
        )
        of_silo = texts(config, own).victims
        self._held_out = _rows(of_silo, range(HELD_OUT))
        self._train = _rows(of_silo, range(HELD_OUT, len(of_silo)))
        self._settings = AuditSettings(documents=documents, tokens=tokens, public_documents=public)
        self._texts = texts(replace(config, data=DataConfig()), self._settings)
        self.most_frequent = best_constant(self._texts)
        budget = Budget(7 * 24 * 60.0)
        told = described(self._subject, self._texts, self._settings, budget)
        self._audit = UnderWay(
            subject=self._subject,
            texts=self._texts,
            settings=self._settings,
            budget=budget,
            say=lambda text: None,
            outcome=Outcome(subject=told, policy=Policy(), documents=documents),
        )
        positive_control(self._audit)
        with self._subject.cut(*self._audit.cuts) as model:
            plain = self._audit.recorded(model, WireConfig(), "plain")
        assert plain.g2 is not None
        self._clips = {"h1_clip": _median(plain.h1), "g2_clip": _median(plain.g2)}

    def lines(self, noises: Sequence[float]) -> Iterator[Line]:
        """One without clip and noise, and one for every noise; 0 clips alone."""
        for noise in (None, *noises):
            yield self._line(noise)

    def _line(self, noise: float | None) -> Line:
        wire = WireConfig()
        if noise is not None:
            each = noise / math.sqrt(self._hidden)
            wire = replace(wire, **self._clips, h1_noise=each, g2_noise=each)
        batches = batches_of(self._train, self._subject.config.train.batch_size)
        with lone_silo(self._subject, wire) as silo:
            before = float(silo.losses(self._held_out).mean())
            silo.train(batches, seed=0, steps=self._steps)
            loss = float(silo.losses(self._held_out).mean())
        found, inverter = self._attacked(wire)
        return Line(
            noise=noise, before=before, loss=loss, found=found, converged=inverter.converged
        )

    def _attacked(self, wire: WireConfig) -> tuple[dict[str, float], Fitted]:
        with self._subject.cut(*self._audit.cuts) as model:
            recording = self._audit.recorded(model, wire, "own")
            attacker = self._audit.attacker(model, wire, recording, quiet=True)
            attacker.nearest()
            attacker.inverters((INVERTER,))
            attacker.search()
            attacker.labels()
        return token_shares(attacker.results), attacker.fitted[INVERTER]


def _rows(of: Documents, rows: range) -> Documents:
    kept = slice(rows.start, rows.stop)
    return replace(
        of,
        data=of.data.select(list(rows)),
        ids=of.ids[kept],
        mask=of.mask[kept],
        learnt=of.learnt[kept],
        scored=of.scored[kept],
    )


def _median(of: Tensor) -> float:
    norms = of.norm(dim=-1)
    return float(norms[norms > 0].median())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every noise, and write all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--noise", type=float, nargs="*", default=(0.1, 0.3, 1.0))
    parser.add_argument("--rate", type=float, help="learning rate, where not the app's")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--public", type=int, default=80)
    parser.add_argument("--set", nargs="*", default=(), help="other keys of the run config")
    parser.add_argument("--out", type=Path)
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    flat = settings(asked.folder, asked.batch)
    flat |= {"train.learning-rate": asked.rate} if asked.rate else {}
    flat |= parse_overrides(asked.set)
    bench = Bench(
        flat,
        steps=asked.steps,
        documents=asked.documents,
        tokens=asked.tokens,
        public=asked.public,
    )
    told = {
        "command": shlex.join(["python", "tests/benchmarks/defended_utility.py", *given]),
        "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
        "model": "quickstart" if asked.folder is None else "SmolLM2-135M-Instruct",
        "steps": asked.steps,
        "batch": asked.batch,
        "most-frequent-token": bench.most_frequent,
    }
    found = list[Line]()
    print(f"most frequent token: {bench.most_frequent:.1%}")
    for line in bench.lines(asked.noise):
        found.append(line)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in line.found.items())
        noise = "none" if line.noise is None else f"{line.noise:g}"
        end = "" if line.converged else "; under-trained"
        print(f"{noise:6} {line.before:.3f} -> {line.loss:.3f}   {shares}{end}", flush=True)
        if asked.out is not None:  # a line may take minutes
            content = {**told, "lines": [asdict(one) for one in found]}
            asked.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
