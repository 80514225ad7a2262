"""AdaLoRA's ranks over a cut: PEFT's allocator at each party, with one budget for the whole model.

AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) gives every module triplets of two singular vectors
and a singular value, scores them by how much the loss depends on them, and masks those of the
lowest scores over all modules. Each party scores and masks the triplets of its own layers by
PEFT's `RankAllocator`. The silo asks the trunk for its scores, finds the threshold over both, and
tells it. So the trunk learns a threshold and no score of the silo's.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import AdaLoraModel, RankAllocator
from torch import Tensor, nn

from flower_split.adapters.adalora.orthogonality import OrthogonalTerm, find_adalora, trained_config
from flower_split.adapters.methods import last_allocation_problem
from flower_split.adapters.plan import ADAPTER
from flower_split.adapters.state import with_adapter
from flower_split.errors import AdapterError, WireError


class TrunkRanks(Protocol):
    """The trunk's triplets, as the silo asks for them."""

    def update(self) -> None:
        """Have importances go on by the gradient of the step that was taken last."""
        ...

    def scores(self) -> tuple[float, ...]:
        """Scores of all its triplets."""
        ...

    def mask(self, threshold: float) -> None:
        """Have triplets masked whose score is at most `threshold`."""
        ...

    def mask_again(self) -> int:
        """Have those masked that were masked last; how many are not."""
        ...

    def reset(self) -> None:
        """Have importances forgotten."""
        ...

    def masked(self) -> None:
        """The silo has masked its own."""
        ...


class PartAllocator(RankAllocator):
    """PEFT's allocator of one party's triplets.

    Args:
        model: Whatever has `named_parameters`, this party's triplets among them.
        config: PEFT's.
        adapter: Name of the adapter.
    """

    def __init__(self, model: Any, config: AdaLoraConfig, adapter: str = ADAPTER) -> None:
        super().__init__(model, config, adapter)  # type: ignore[no-untyped-call]
        self.kept: dict[str, list[bool]] = {
            name: (value.detach() != 0).view(-1).tolist()
            for name, value in self._of(model, "lora_E").items()
        }
        """Which triplets were left by the last mask; at first those whose value is not 0, so that
        a round after the last allocation keeps the ranks of the adapter that it was sent."""

    def scores(self, model: Any) -> dict[str, Tensor]:
        """Score of every triplet, (rank,) by the name of the module's values.

        Raises:
            KeyError: importances were never updated.
        """
        found: dict[str, Tensor] = {}
        for name in self._of(model, "lora_E"):
            left, right = name.replace("lora_E", "lora_A"), name.replace("lora_E", "lora_B")
            vectors = [
                self._element_score(left).mean(dim=1, keepdim=True),  # type: ignore[no-untyped-call]
                self._element_score(right).mean(dim=0).view(-1, 1),  # type: ignore[no-untyped-call]
            ]
            values = self._element_score(name)  # type: ignore[no-untyped-call]
            found[name] = self._combine_ipt(values, torch.cat(vectors, dim=1))  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def mask(self, model: Any, scores: Mapping[str, Tensor], threshold: float) -> None:
        """Mask the triplets whose score is at most `threshold`."""
        for name, value in self._of(model, "lora_E").items():
            low = scores[name].view(-1, 1) <= threshold
            value.masked_fill_(low, 0.0)
            self.kept[name] = (~low).view(-1).tolist()

    def mask_again(self, model: Any) -> int:
        """Mask what is not in `kept`; how many triplets are."""
        self.mask_using_rank_pattern(model, self.kept)  # type: ignore[no-untyped-call]
        return sum(map(sum, self.kept.values()))

    def _of(self, model: Any, part: str) -> dict[str, Tensor]:
        wanted = f"{part}.{self.adapter_name}"
        return {name: p for name, p in model.named_parameters() if wanted in name}


class TrunkAllocator:
    """The allocator of one session's triplets at the trunk.

    Args:
        named: Its adapter tensors by their names in the uncut model.
        config: PEFT's.
    """

    def __init__(self, named: Mapping[str, nn.Parameter], config: AdaLoraConfig) -> None:
        self._model = _Named(named)
        self._allocator = PartAllocator(self._model, config)

    def update(self, gradients: Mapping[str, Tensor | None]) -> None:
        """Have importances go on by the gradients of the last step.

        Raises:
            AdapterError: a tensor has none.
        """
        parameters = dict(self._model.named_parameters())
        missing = [name for name in parameters if gradients[name] is None]
        if missing:
            raise AdapterError(
                f"{missing[0]} has no gradient: ranks are allocated after a step's backward "
                "passes and step(), and before zero_grad()"
            )
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        self._allocator.update_ipt(self._model)  # type: ignore[no-untyped-call]
        for parameter in parameters.values():
            parameter.grad = None

    def scores(self) -> tuple[float, ...]:
        """Scores of all triplets, module by module.

        Raises:
            AdapterError: importances were never updated, or are not finite.
        """
        scores = torch.cat([*self._scores().values()]).float()
        if not bool(torch.isfinite(scores).all()):
            raise AdapterError("the triplets' scores are not finite: the training diverged")
        return tuple(scores.tolist())

    def mask(self, threshold: float) -> None:
        """Mask the triplets whose score is at most `threshold`.

        Raises:
            AdapterError: importances were never updated.
        """
        self._allocator.mask(self._model, self._scores(), threshold)

    def mask_again(self) -> int:
        """Mask those that were masked last; how many are not."""
        return self._allocator.mask_again(self._model)

    def reset(self) -> None:
        """Forget importances."""
        self._allocator.reset_ipt()  # type: ignore[no-untyped-call]

    def _scores(self) -> dict[str, Tensor]:
        try:
            return self._allocator.scores(self._model)
        except KeyError as error:
            raise AdapterError("triplets have no scores before an update") from error


class CutAllocator(PartAllocator):
    """The silo's allocator: `AdaLoraModel.update_and_allocate` allocates over the cut by it.

    Args:
        model: The stock model with PEFT's layers in it.
        config: PEFT's.
        trunk: The trunk's triplets.
        modules: With an adapter, of the whole model.
    """

    def __init__(
        self, model: nn.Module, config: AdaLoraConfig, trunk: TrunkRanks, modules: int
    ) -> None:
        self._trunk: TrunkRanks | None = None
        self._whole = modules
        super().__init__(model, config)
        self._trunk = trunk

    def _set_budget_scheduler(self, model: nn.Module) -> None:
        super()._set_budget_scheduler(model)  # type: ignore[no-untyped-call]
        self.own_bgt = self.init_bgt
        self.init_bgt = self.peft_config.init_r * self._whole
        self.target_bgt = self.peft_config.target_r * self._whole

    def reset_ipt(self) -> None:
        """See `RankAllocator`."""
        super().reset_ipt()  # type: ignore[no-untyped-call]
        if self._trunk is not None:
            self._trunk.reset()

    def update_ipt(self, model: nn.Module) -> None:
        """See `RankAllocator`.

        Raises:
            AdapterError: a tensor of the silo's has no gradient.
        """
        try:
            super().update_ipt(model)  # type: ignore[no-untyped-call]
        except TypeError as error:
            raise AdapterError(
                "a tensor of the silo's adapter has no gradient: call update_and_allocate after "
                "optimizer.step() and before zero_grad()"
            ) from error
        self._told.update()

    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]]:
        """Mask at both parties what is over `budget`; the silo's pattern.

        Raises:
            WireError: the trunk has not as many triplets as the plan.
            AdapterError: there are no scores to go by.
        """
        try:
            own = self.scores(model)
        except KeyError as error:
            raise AdapterError(
                "the triplets have no scores: those of the session's steps before the schedule's "
                "last allocation (total_step less tfinal) make them, and it forgets them. Call "
                "update_and_allocate once for each optimizer step, with steps that count up, and "
                "let that one not be the session's first"
            ) from error
        theirs = torch.tensor(self._told.scores())
        if self.own_bgt + len(theirs) != self.init_bgt:
            raise WireError(
                f"the trunk told scores of {len(theirs)} triplets, and has "
                f"{self.init_bgt - self.own_bgt} by the plan"
            )
        scores = torch.cat([*(score.detach().float().cpu() for score in own.values()), theirs])
        if not bool(torch.isfinite(scores).all()):
            raise AdapterError("the triplets' scores are not finite: the training diverged")
        threshold = torch.kthvalue(scores, k=self.init_bgt - budget)[0].item()
        self._told.mask(threshold)
        self.mask(model, own, threshold)
        self._told.masked()
        return dict(self.kept)

    def mask_using_rank_pattern(
        self, model: nn.Module, rank_pattern: Mapping[str, list[bool]] | None
    ) -> None:
        """Mask at both parties what was masked last.

        Raises:
            AdapterError: no triplet is left at all.
        """
        super().mask_using_rank_pattern(model, self.kept)  # type: ignore[no-untyped-call]
        left = sum(map(sum, self.kept.values())) + self._told.mask_again()
        self._told.masked()
        if not left:
            raise AdapterError(
                "AdaLoRA's schedule is past its last allocation, and the adapter that the session "
                "began with has no rank: begin at a lower step, or raise total_step"
            )

    @property
    def _told(self) -> TrunkRanks:
        if self._trunk is None:
            raise AdapterError("the session in which this model's ranks were allocated is over")
        return self._trunk


def allocate_ranks(model: nn.Module, step: int) -> None:
    """After optimizer step `step` of the run, from 0: allocate AdaLoRA's ranks, where it is used.

    Gradients must still be there.
    """
    found = find_adalora(model)
    if found is not None:
        found.update_and_allocate(step)


def check_last_allocation(model: nn.Module, steps: int, rounds: int) -> None:
    """Raise `AdapterError` where AdaLoRA's last allocation falls on the first step of a round.

    Args:
        model: A client model, whatever its adapter.
        steps: Of a silo's round.
        rounds: Of the run.
    """
    found = find_adalora(model)
    told = last_allocation_problem(trained_config(found), steps, rounds) if found else ""
    if told:
        raise AdapterError(told)


def allocate_over_cut(
    found: AdaLoraModel, slot: nn.Module, trunk: TrunkRanks, modules: int, told: Any
) -> OrthogonalTerm:
    """Have `update_and_allocate` of a client model and its loss be those of the whole model.

    Args:
        found: The client model's.
        slot: The layer at the trunk's place.
        trunk: The trunk's triplets.
        modules: With an adapter, of the whole model.
        told: Gives the trunk's part of the orthogonal term of the pass that was made last.

    Raises:
        AdapterError: the adapter has not the ranks with which a session begins.
    """
    config = trained_config(found)
    ranks = {p.shape[0] for n, p in found.model.named_parameters() if "lora_E." in n}
    if found.trainable_adapter_name != ADAPTER or ranks != {config.init_r}:
        raise AdapterError(
            f"the client model's AdaLoRA adapter {found.trainable_adapter_name!r} has ranks "
            f"{sorted(ranks)}, and a session begins with {ADAPTER!r} and init_r {config.init_r} in "
            "all modules: wrap the client model with flower_split.wrap(client_model, plan)"
        )
    config.rank_pattern = None
    term = OrthogonalTerm(found, slot, modules)
    found.rankallocator = CutAllocator(found.model, config, trunk, modules)
    found.forward = partial(_forward, found.model, term, told)  # type: ignore[method-assign]
    return term


def allocate_alone(found: AdaLoraModel) -> None:
    """Undo `allocate_over_cut`: budgets and loss are those of the silo's own modules."""
    found.__dict__.pop("forward", None)
    config = trained_config(found)
    config.rank_pattern = None
    found.rankallocator = RankAllocator(found.model, config, found.trainable_adapter_name)


def _forward(stock: nn.Module, term: OrthogonalTerm, told: Any, *args: Any, **kwargs: Any) -> Any:
    """`AdaLoraModel.forward` with the term of the whole model."""
    outputs = stock.forward(*args, **kwargs)
    term.add_to(outputs, term.before(), told())
    return outputs


class _Named:
    """A session's tensors as a model that has no others."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._named = {with_adapter(name): parameter for name, parameter in named.items()}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._named.items()
