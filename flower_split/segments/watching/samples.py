"""Some elements of a tensor, by which changes of all of it are noticed."""

from torch import Tensor

SAMPLED = 64
"""Elements of a tensor that are looked at."""


class TensorSample:
    """Some elements of a tensor as it is now; none of one whose elements are not its values.

    Args:
        tensor: A parameter or a buffer.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._place = -1
        self._view: Tensor | None = None
        view = self.view(tensor)
        self.seen = None if view is None else view.clone()

    def view(self, tensor: Tensor) -> Tensor | None:
        """The same elements of the tensor that stands in its place."""
        data = tensor.data
        if type(data) is not Tensor or data.is_meta or not data.is_contiguous():
            self._view = None
        elif self._view is None or self._place != data.data_ptr():
            self._place = data.data_ptr()
            step = max(1, data.numel() // SAMPLED) | 1  # else of one column of a matrix
            self._view = data.reshape(-1)[::step]
        return self._view

    def forget_place(self) -> "TensorSample":
        """Itself, without the tensor that it was taken of."""
        self._view, self._place = None, -1
        return self

    def is_other(self, tensor: Tensor) -> bool:
        """Whether a tensor that is not trained has other values, but for those of another dtype."""
        if tensor.requires_grad or self.seen is None:
            return False
        view = self.view(tensor)
        if view is None or view.shape != self.seen.shape:
            return True
        a, b = view, self.seen.to(view)
        return not bool(((a == b) | (a.isnan() & b.isnan())).all())
