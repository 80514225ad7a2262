"""The trunk's border: tensors between a session and the trunk's layers.

In a session, tensors have the session's dtype, which is that of the silo's weights, and may be on
the host. The trunk has a dtype and a device of its own. Each tensor is changed once on its way in
and once on its way out, and where both sides are alike it is passed on as it is.
"""

from dataclasses import replace

from torch import Tensor

from flower_split.devices import mark_ready, to_device
from flower_split.errors import WireError
from flower_split.segments import Trunk
from flower_split.serialization.tables import DTYPE_BY_NAME
from flower_split.transport.messages import ForwardRequest, SessionSpec


class Border:
    """Where one session's tensors enter the trunk and leave it.

    Args:
        trunk: The layers, which stay on their device.
        spec: What the session agreed on.
    """

    def __init__(self, trunk: Trunk, spec: SessionSpec) -> None:
        self._dtype = DTYPE_BY_NAME[spec.dtype]
        self._inside, self._device = trunk.dtype, trunk.device

    def enter(self, request: ForwardRequest) -> ForwardRequest:
        """The request with h1 in the trunk's dtype, and all its tensors on the trunk's device.

        Raises:
            WireError: h1 has not the session's dtype.
        """
        mask, positions = request.attention_mask, request.position_ids
        return replace(
            request,
            hidden=self._enter("h1", request.hidden),
            attention_mask=None if mask is None else to_device(mask, self._device),
            position_ids=None if positions is None else to_device(positions, self._device),
        )

    def enter_grad(self, grad: Tensor) -> Tensor:
        """g2, (B, T, H), in the trunk's dtype and on its device.

        Raises:
            WireError: it has not the session's dtype.
        """
        return self._enter("g2", grad)

    def leave(self, tensor: Tensor) -> Tensor:
        """h2 or g1, (B, T, H), in the session's dtype; on the trunk's device still."""
        return mark_ready(tensor.detach().to(self._dtype))

    def _enter(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype != self._dtype:
            raise WireError(f"{name} is {tensor.dtype}, expected {self._dtype}")
        return to_device(tensor, self._device, self._inside)
