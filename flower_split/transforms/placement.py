"""Placement: dtype and device, which every tensor changes at a cut."""

from torch import Tensor

from flower_split.devices import mark_ready, to_device
from flower_split.errors import WireError
from flower_split.serialization.tables import DTYPE_BY_NAME
from flower_split.transforms.transform import End, Transform, TransformContext
from flower_split.transport.messages import SessionSpec


class Placement(Transform):
    """Leaves in the session's dtype, enters on the end's device and in its dtype.

    In a session, tensors have the session's dtype, which is that of the silo's weights, and may be
    on the host. It is outermost at both ends, so that every other transform works where the end
    computes. A tensor that is as it shall be is passed on as it is.
    """

    name = "placement"

    def __init__(self, spec: SessionSpec, end: End) -> None:
        super().__init__(spec, end)
        self._dtype = DTYPE_BY_NAME[spec.dtype]

    def outgoing(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """`tensor` in the session's dtype; on the end's device still."""
        return mark_ready(tensor.to(self._dtype))

    def incoming(self, hop: str, tensor: Tensor, context: TransformContext) -> Tensor:
        """`tensor` where the end computes.

        Raises:
            WireError: it has not the session's dtype.
        """
        if tensor.dtype != self._dtype:
            raise WireError(f"{hop} is {tensor.dtype}, expected {self._dtype}")
        return to_device(tensor, context.device, context.dtype)
