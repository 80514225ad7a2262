"""Gradients of every row of a batch by itself, of the linear modules that are trained.

A linear module with input x and output gradient dy has, of row i, the weight gradient dyᵢᵀ xᵢ
summed over its tokens (Goodfellow 2015, "Efficient Per-Example Gradient Computations",
arXiv:1510.01799).
Both are at hand in an ordinary backward pass, so that a batch costs about what it costs anyway.

Axes: B rows of a batch, T tokens, I and O the module's inputs and outputs.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flower_split.errors import AdapterError

_TOLERANCE, _TOLERANCE_NARROW = 1e-3, 5e-2
"""Of the sum of the rows' gradients, in parts of what autograd finds; where something on the way
had fewer bits than float32."""
_ROUNDED, _ROUNDED_NARROW = 1e-5, 1e-2
"""The same in parts of the sum of the rows' norms."""


class RowRecord:
    """What one batch's backward pass gives, row by row.

    Args:
        rows: B.
        device: Where the batch is.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self.is_narrow = False
        """Whether a gradient came in fewer bits than float32."""
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        """What autograd is asked to differentiate for, so that it comes by every module."""
        self._found: dict[Tensor, Tensor] = {}

    def add(self, parameter: Tensor, gradients: Tensor) -> None:
        """Add to the rows' gradients of `parameter`, (B, *its shape) float32."""
        held = self._found.get(parameter)
        self._found[parameter] = gradients if held is None else held.add_(gradients)

    def squared_norms(self) -> Tensor:
        """|g_i|² over all parameters, (B,) float64 on the CPU."""
        norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in self._found.values()]
        if not norms:
            return torch.zeros(self.rows, dtype=torch.float64)
        return torch.stack(norms).to("cpu", torch.float64).square().sum(0)

    def weighted(self, factors: Tensor) -> Mapping[Tensor, Tensor]:
        """Σ_i f_i g_i of every parameter that has a gradient, in its shape, float32.

        Args:
            factors: f, (B,).
        """
        return {
            parameter: torch.einsum("b,b...->...", factors.to(held), held)
            for parameter, held in self._found.items()
        }

    def length(self, parameter: Tensor) -> float:
        """Σ_i |g_i| of a parameter; 0 where it has no gradient."""
        held = self._found.get(parameter)
        return 0.0 if held is None else float(held.flatten(1).norm(dim=1).sum())

    def total(self, parameter: Tensor) -> Tensor | None:
        """Σ_i g_i of a parameter; None where it has no gradient."""
        held = self._found.get(parameter)
        return None if held is None else held.sum(0)


class RowGradients:
    """Watches the modules that own the parameters, while a record is open.

    Args:
        model: Has them.
        parameters: Those that are trained.

    Raises:
        AdapterError: one is not the weight or bias of a linear module, or of several at once: its
            gradient cannot be told row by row.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        self._record: RowRecord | None = None
        self._checked: weakref.ref[RowRecord] | None = None
        handles = [
            module.register_forward_hook(RowHook(self, name, module))
            for name, module in _owners(model, self.parameters).items()
        ]
        self._finalizer = weakref.finalize(self, _remove, handles)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Watch no more; can be called twice."""
        self._finalizer()

    def record(self, rows: int, device: torch.device) -> RowRecord:
        """A record for one batch."""
        return RowRecord(rows, device)

    @contextmanager
    def recording(self, record: RowRecord | None) -> Iterator[None]:
        """Forward passes are those of `record` meanwhile; of none, without gradients by row."""
        before, self._record = self._record, record
        try:
            yield
        finally:
            self._record = before

    @property
    def current(self) -> RowRecord | None:
        """The record whose forward pass is under way."""
        return self._record

    def differentiate(
        self,
        ends: Sequence[Tensor],
        at_ends: Sequence[Tensor | None],
        wanted: Sequence[Tensor],
        record: RowRecord,
    ) -> list[Tensor | None]:
        """The gradients of `wanted`; those of the parameters, row by row, are in `record` then.

        The sums of the first record that comes here are compared with autograd's gradients.

        Args:
            ends: Where the backward pass begins.
            at_ends: The gradients there; None for 1.
            wanted: Tensors.
            record: That was open in the forward pass.

        Raises:
            AdapterError: a parameter's rows do not add up to its gradient, because it is used
                otherwise than by its module.
        """
        if self._checked is None:
            self._checked = weakref.ref(record)
        checked = self.parameters if self._checked() is record else ()
        with self.recording(record):  # of layers that are computed anew
            found = torch.autograd.grad(
                list(ends),
                [*wanted, record.anchor, *checked],
                list(at_ends),
                allow_unused=True,
            )
        for parameter, gradient in zip(checked, found[len(wanted) + 1 :], strict=True):
            if gradient is not None:
                _check(record, parameter, gradient)
        return list(found[: len(wanted)])


class RowHook:
    """Adds to the graph of a module's output what tells its rows' gradients."""

    def __init__(self, watch: RowGradients, name: str, module: nn.Linear) -> None:
        self._watch = weakref.ref(watch)
        self._name = name
        trained = {id(parameter) for parameter in watch.parameters}
        self._weight = module.weight if id(module.weight) in trained else None
        self._bias = module.bias if id(module.bias) in trained else None

    def __call__(self, module: nn.Linear, args: tuple[Any, ...], output: Tensor) -> Any:
        watch = self._watch()
        record = None if watch is None else watch.current
        if record is None or not torch.is_grad_enabled():
            return None
        given = args[0]
        if given.dim() < 2 or given.shape[0] != record.rows:
            raise AdapterError(
                f"{self._name} is given {tuple(given.shape)} for a batch of {record.rows} rows: it "
                "mixes rows, whose gradients DP-SGD (dp.noise) has to tell apart. Leave it out of "
                "lora.target-modules"
            )
        own = self._weight, self._bias
        return _Rows.apply(output, record.anchor, given.detach(), record, own)  # type: ignore[no-untyped-call]


class _Rows(torch.autograd.Function):
    """A linear module's output as it is; backward, its rows' gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        anchor: Tensor,
        given: Tensor,
        record: RowRecord,
        own: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        """The output, (B, ..., O), of the trained weight and bias."""
        ctx.save_for_backward(given)
        ctx.record, ctx.own = record, own
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient as it came."""
        (given,) = ctx.saved_tensors
        record: RowRecord = ctx.record
        weight, bias = ctx.own
        record.is_narrow |= grad.dtype != torch.float32 or given.dtype != torch.float32
        rows = grad.shape[0]
        with torch.autocast(grad.device.type, enabled=False):
            at_output = grad.float().reshape(rows, -1, grad.shape[-1])
            if weight is not None:
                inputs = given.float().reshape(rows, -1, given.shape[-1])
                record.add(weight, torch.bmm(at_output.transpose(1, 2), inputs))
            if bias is not None:
                record.add(bias, at_output.sum(1))
        return grad, None, None, None, None


def _owners(model: nn.Module, parameters: Sequence[nn.Parameter]) -> dict[str, nn.Linear]:
    """The linear modules of the parameters, by name."""
    wanted = {id(parameter) for parameter in parameters}
    owners: dict[str, nn.Linear] = {}
    seen = set[int]()
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in wanted:
                continue
            if not isinstance(module, nn.Linear):
                raise _not_by_row(f"{name}.{own}", f"a {type(module).__name__}'s")
            if id(parameter) in seen:
                raise _not_by_row(f"{name}.{own}", "shared by several modules")
            seen.add(id(parameter))
            owners[name] = module
    if len(seen) < len(wanted):
        raise AdapterError(
            f"{len(wanted) - len(seen)} of the trained tensors are of no module of the model, and "
            "DP-SGD (dp.noise) has to tell gradients row by row"
        )
    return owners


def _not_by_row(name: str, what: str) -> AdapterError:
    return AdapterError(
        f"{name} is trained and is {what}: DP-SGD (dp.noise) has the gradients of every example by "
        "itself of linear modules alone. Use peft.type LORA, without DoRA, biases or embeddings "
        "among what is trained"
    )


def _check(record: RowRecord, parameter: nn.Parameter, gradient: Tensor) -> None:
    total, wide = record.total(parameter), gradient.float()
    narrow = record.is_narrow or gradient.dtype != torch.float32
    apart = wide.norm() if total is None else (total - wide).norm()
    bound = wide.norm() * (_TOLERANCE_NARROW if narrow else _TOLERANCE)
    # Rows that cancel leave their rounding behind.
    bound += record.length(parameter) * (_ROUNDED_NARROW if narrow else _ROUNDED)
    if not bool(apart <= bound):
        raise AdapterError(
            f"the examples' gradients of a trained tensor of shape {tuple(parameter.shape)} do not "
            f"add up to its gradient (apart by {float(apart):.3g} of {float(wide.norm()):.3g}): it "
            "is used otherwise than by its linear module, and DP-SGD (dp.noise) could not bound "
            "it. Use peft.type LORA without further options"
        )


def _remove(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()
