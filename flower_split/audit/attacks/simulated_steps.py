"""A silo's local steps as the aggregator computes them: of a text that he has guessed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from flower_split.adapters import load_adapter, resolve_plan, wrap
from flower_split.adapters.notices import without_peft_notices
from flower_split.audit.subject import Subject, loaded
from flower_split.segments import join, load_skeleton, load_trunk

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW, as a run has them."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedSteps:
    """Steps of the silo's part of the adapter over one text; the trunk's part stands still."""

    model: Any
    """Client model and trunk in one graph."""
    start: Tensors
    """What is trained, as it is before the steps, by its name."""
    table: Tensor
    """(V, E): what enters the first layer for every token."""
    rate: float

    def gradients(
        self, at: Tensors, embedded: Tensor, following: Tensor, *, graph: bool
    ) -> dict[str, Tensor]:
        """Of the loss of a text.

        Args:
            at: What is trained.
            embedded: (T, E).
            following: (T - 1, V): of every place but the last one the chances of the next token.
            graph: Whether they have one, down to the text.
        """
        named = {name: one.detach().requires_grad_() for name, one in at.items()}
        ones = torch.ones(1, len(embedded), dtype=torch.int64, device=embedded.device)
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            call = {"inputs_embeds": embedded[None], "attention_mask": ones, "use_cache": False}
            logits = functional_call(self.model, named, (), call).logits[0, :-1].float()
            loss = -(following * logits.log_softmax(-1)).sum() / len(following)
            found = torch.autograd.grad(loss, [*named.values()], create_graph=graph)
        return dict(zip(named, found, strict=True))

    def first_updates(self, embedded: Tensor, following: Tensor) -> dict[str, Tensor] | None:
        """What the first step of AdamW over each of K texts adds, (K, *its shape), in one pass.

        None where something is trained that is not the weight of a linear module, of which alone
        the texts' gradients can be told apart: by its inputs and the gradients at its outputs.

        Args:
            embedded: (K, T, E).
            following: (K, T - 1, V).
        """
        owners = self._owners()
        if owners is None:
            return None
        passed = dict[str, tuple[Tensor, Tensor]]()
        hooks = [
            module.register_forward_hook(_noting(passed, name)) for name, module in owners.items()
        ]
        named = {name: one.detach().requires_grad_() for name, one in self.start.items()}
        ones = torch.ones(embedded.shape[:2], dtype=torch.int64, device=embedded.device)
        try:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                call = {"inputs_embeds": embedded, "attention_mask": ones, "use_cache": False}
                logits = functional_call(self.model, named, (), call).logits[:, :-1].float()
                loss = -(following * logits.log_softmax(-1)).sum() / following.shape[1]
                outputs = [passed[name][1] for name in owners]
                found = torch.autograd.grad(loss, outputs)
        finally:
            for hook in hooks:
                hook.remove()
        updates = dict[str, Tensor]()
        for name, at_output in zip(owners, found, strict=True):
            gradient = torch.einsum("kto,kti->koi", at_output, passed[name][0].detach())
            updates[name] = -self.rate * gradient / (gradient.abs() + EPS)
        return updates

    def _owners(self) -> dict[str, nn.Linear] | None:
        owners = dict[str, nn.Linear]()
        for name in self.start:
            module_name, _, own = name.rpartition(".")
            module = self.model.get_submodule(module_name)
            if own != "weight" or not isinstance(module, nn.Linear):
                return None
            owners[name] = module
        return owners

    def update(
        self, embedded: Tensor, following: Tensor, steps: int, *, smooth: bool
    ) -> dict[str, Tensor]:
        """What so many steps of AdamW add to what is trained.

        Args:
            embedded: (T, E).
            following: (T - 1, V).
            steps: Over this text.
            smooth: Whether an element's step grows with its gradient, up to the root mean square
                of its tensor's, so that there is a derivative; else it is AdamW's, without a graph.
        """
        at, means, squares = dict(self.start), dict[str, Tensor](), dict[str, Tensor]()
        total = {name: torch.zeros_like(one) for name, one in at.items()}
        for step in range(1, steps + 1):
            made = self.gradients(at, embedded, following, graph=smooth)
            for name, gradient in made.items():
                mean = (1 - BETAS[0]) * gradient + BETAS[0] * means.get(name, 0.0)
                square = (1 - BETAS[1]) * gradient.square() + BETAS[1] * squares.get(name, 0.0)
                means[name], squares[name] = mean.detach(), square.detach()
                mean, square = mean / (1 - BETAS[0] ** step), square / (1 - BETAS[1] ** step)
                if smooth:
                    level = mean.detach().square().mean()
                    moved = mean / (mean.square() + level + 1e-30).sqrt()
                else:
                    moved = mean / (square.sqrt() + EPS)
                moved = -self.rate * moved
                total[name] = total[name] + moved
                at[name] = (at[name] + moved).detach()
        return total


def _noting(
    passed: dict[str, tuple[Tensor, Tensor]], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def note(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        passed[name] = given[0], made

    return note


@contextmanager
def simulated_steps(subject: Subject, start: Tensors) -> Iterator[SimulatedSteps]:
    """The aggregator's copy of the model at the run's cut.

    Args:
        subject: What is audited.
        start: What is trained of a client model of this cut, by its name there.
    """
    config, split = subject.config, subject.config.split
    client: Any = subject.client(split.bottom_layers, split.top_layers)
    trunk = load_trunk(
        bottom_layers=split.bottom_layers,
        top_layers=split.top_layers,
        **loaded(config.model, subject.device),
    )
    if subject.adapter is not None:
        with without_peft_notices():
            client = load_adapter(client, subject.adapter)
            trunk = load_adapter(trunk, subject.adapter)
    else:
        skeleton = load_skeleton(config.model.name, revision=config.model.revision)
        client = wrap(client, resolve_plan(skeleton, config.lora, config.peft))
    join(_stock(client), trunk)
    client.requires_grad_(False)
    trunk.requires_grad_(False)
    client.eval()
    embeddings = client.get_input_embeddings()
    with torch.no_grad():
        tokens = torch.arange(len(embeddings.weight), device=embeddings.weight.device)
        table = embeddings(tokens)
    yield SimulatedSteps(
        model=client, start=dict(start), table=table, rate=config.train.learning_rate
    )


def _stock(client: nn.Module) -> PreTrainedModel:
    return next(one for one in client.modules() if isinstance(one, PreTrainedModel))
