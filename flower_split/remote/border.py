"""The silo's border: tensors between its model and its session with the trunk.

In the session, tensors have the session's dtype, which is that of the silo's weights, and those
that arrive are on the host. In the model they are where it is, in the dtype in which it computes.
"""

from torch import Tensor

from flower_split.devices import mark_ready, to_device
from flower_split.serialization.tables import DTYPE_BY_NAME
from flower_split.transport.messages import SessionSpec


def outgoing(tensor: Tensor, spec: SessionSpec) -> Tensor:
    """h1 or g2, (B, T, H), as a request of the session `spec` carries it: detached."""
    return mark_ready(tensor.detach().to(DTYPE_BY_NAME[spec.dtype]))


def incoming(tensor: Tensor, like: Tensor) -> Tensor:
    """h2 or g1, (B, T, H), on the device and in the dtype of the model's h1, `like`."""
    return to_device(tensor, like.device, like.dtype)
