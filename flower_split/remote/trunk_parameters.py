"""The trunk's adapter as parameters of the client model, for any optimizer of torch.

Every tensor of the trunk's part gets a parameter, with the gradient that the trunk computed. So an
optimizer, a gradient scaler, clipping, saving and loading are the stock ones. It costs an adapter's
bytes down for each microbatch, its bytes up for each step, and shows the silo the trunk's part of
its adapter; hence the trunk has to allow it.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from flower_split.errors import AdapterError, WireError
from flower_split.lowrank import part_of
from flower_split.remote.layer_watch import check_frozen
from flower_split.remote.trunk_adapter import TrunkAdapter


class TrunkParameters:
    """The parameters of one session.

    Args:
        adapter: The trunk's part of the adapter.
        trained: Names of the silo's adapter tensors that the session trains: the trunk's of the
            same factors are trained. None for all.
        owner: Gets the parameters. Their names end with those in the uncut model, an underscore for
            every dot, because PEFT would take a module of that path for one to wrap.

    Raises:
        AdapterError: the trunk is frozen or shared, does not give its adapter away, or the client
            model is not wrapped yet.
    """

    def __init__(
        self, adapter: TrunkAdapter, owner: nn.Module, *, trained: Collection[str] | None = None
    ) -> None:
        if not adapter.is_there:
            raise AdapterError("a frozen trunk has no adapter: leave trunk_parameters out")
        if adapter.is_shared:
            raise AdapterError(
                "a shared trunk's adapter is stepped by all silos and cannot be a parameter of "
                "one: train with SplitAdamW"
            )
        if not adapter.is_wrapped:
            raise AdapterError(
                "trunk_parameters needs the client model's adapter: wrap it first, then attach"
            )
        self._adapter = adapter
        self._owner = owner
        parts = None if trained is None else {part_of(name) for name in trained}
        self._named = {
            name: nn.Parameter(
                tensor.clone(), requires_grad=parts is None or part_of(name) in parts
            )
            for name, tensor in adapter.read().items()
        }
        for name, parameter in self._named.items():
            owner.register_parameter(name.replace(".", "_"), parameter)
        self.parameters = tuple(self._named.values())
        """In the order of the uncut model."""
        self._pushed = [parameter.detach().clone() for parameter in self.parameters]
        self._has_gradient = False

    def push(self) -> None:
        """Have the trunk compute with the parameters as they are now.

        Raises:
            AdapterError: a value is not finite, an optimizer steps the silo's tensors alone, or
                weights of all of its layers beside the adapter.
        """
        now = [parameter.detach() for parameter in self.parameters]
        is_same = all(torch.equal(a, b) for a, b in zip(now, self._pushed, strict=True))
        if is_same and self._has_gradient and self._adapter.silo_is_changed():
            raise AdapterError(
                "the silo's adapter was stepped, and the trunk's parameters, which have "
                "gradients, were not: make the optimizer after attach_trunk, of all of "
                "model.parameters() that require gradients"
            )
        self._adapter.note_step()  # whoever stepped the silo's tensors has stepped these
        if is_same:
            return
        self._has_gradient = False
        check_frozen(self._adapter.stock, self._adapter.spec)
        self._adapter.write(now)
        self._pushed = [tensor.clone() for tensor in now]

    def gradients(self, gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """For autograd: each parameter's, on its device and in its dtype."""
        sizes = [gradient.numel() for gradient in gradients]
        if sizes != [parameter.numel() for parameter in self.parameters]:
            raise WireError("the trunk's gradients do not have the shapes of its adapter")
        pairs = list(zip(gradients, self.parameters, strict=True))
        if any(bool(grad.any()) for grad, own in pairs if own.requires_grad):
            self._has_gradient = True
        return tuple(
            grad.reshape(own.shape).to(own) if own.requires_grad else None for grad, own in pairs
        )

    def saved(self, *, keep_vars: bool) -> dict[str, Tensor]:
        """The parameters by their names in the adapter's file."""
        return {n: p if keep_vars else p.detach() for n, p in self._named.items()}

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters.

        Args:
            given: Adapter tensors by names of the file.

        Raises:
            AdapterError: they are not those of the session's adapter.
        """
        for name in given.keys() ^ self._named.keys():
            raise AdapterError(
                f"{name} is not in both, what was loaded into the client model and the trunk's "
                "part of the session's adapter: load an adapter of the same settings"
            )
        for name, parameter in self._named.items():
            if given[name].shape != parameter.shape:
                raise AdapterError(
                    f"{name} has shape {tuple(given[name].shape)}, expected "
                    f"{tuple(parameter.shape)}"
                )
            with torch.no_grad():
                parameter.copy_(given[name])
        self._has_gradient = False

    def remove(self) -> None:
        """Take the parameters out of the client model."""
        for name in self._named:
            del self._owner._parameters[name.replace(".", "_")]
