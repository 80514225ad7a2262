"""Clipping by example, and the sum to which noise is added: one party's part of DP-SGD's gradient.

Abadi et al. 2016, arXiv:1607.00133, algorithm 1, with the mean taken over the expected number of
examples, and not over those that were drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flower_split.errors import DivergenceError, WireError
from flower_split.privacy.row_gradients import RowRecord
from flower_split.privacy.secure_noise import SecureNoise
from flower_split.privacy.settings import PrivacySettings

LARGEST_SQUARED_NORM = 1e36
"""Of one example's gradient; the norm is then at most that which plain clipping takes."""
_BELOW = 1 - 1e-6  # rounding makes no gradient longer than the bound


def checked_squared_norms(norms: Sequence[float], rows: int) -> Tensor:
    """Squared norms of examples' gradients as they came from a peer, (B,) float64.

    Raises:
        WireError: they are not one for each of `rows`, or one is none of a gradient.
    """
    if len(norms) != rows:
        raise WireError(f"{len(norms)} squared norms of {rows} examples' gradients")
    for position, norm in enumerate(norms):
        if not 0 <= norm <= LARGEST_SQUARED_NORM:
            raise WireError(
                f"squared norm number {position} is {norm:g}, expected 0 to "
                f"{LARGEST_SQUARED_NORM:g}. The training diverged: lower the learning rate"
            )
    return torch.tensor(norms, dtype=torch.float64)


def checked_factors(factors: Sequence[float], rows: int) -> Tensor:
    """Factors of examples' gradients as they came from a peer, (B,) float64.

    Raises:
        WireError: they are not one for each of `rows`, or one is not from 0 to 1.
    """
    if len(factors) != rows or not all(0 <= factor <= 1 for factor in factors):
        raise WireError(f"expected {rows} factors from 0 to 1, one for each example")
    return torch.tensor(factors, dtype=torch.float64)


def clipping_factors(squared_norms: Tensor, clip: float) -> Tensor:
    """min(1, C / |g_i|) of every example, (B,) float64.

    Args:
        squared_norms: |g_i|² over both sides of the cut, (B,) float64.
        clip: C.

    Raises:
        DivergenceError: a norm is not finite, and nothing could bound that example.
    """
    if not bool(torch.isfinite(squared_norms).all()):
        raise DivergenceError("the gradient of an example is not finite")
    norms = squared_norms.sqrt()
    return (clip * _BELOW / norms.clamp(min=clip * _BELOW)).clamp(max=1.0)


class ClippedSum:
    """Σ_i f_i g_i of a step so far, of one party's parameters.

    Args:
        parameters: In their order.
        settings: Of DP-SGD.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: PrivacySettings) -> None:
        self.settings = settings
        self._parameters = list(parameters)
        self._noise = SecureNoise()
        self._sums: dict[Tensor, Tensor] = {}

    def add(self, record: RowRecord, factors: Tensor) -> None:
        """Add a microbatch's examples, each times its factor."""
        for parameter, gradient in record.weighted(factors).items():
            held = self._sums.get(parameter)
            self._sums[parameter] = gradient if held is None else held.add_(gradient)

    def forget(self) -> None:
        """Begin a step anew."""
        self._sums.clear()

    def noisy_mean(self) -> list[Tensor]:
        """The gradient of every parameter, in its shape and dtype; the next step begins.

        (Σ_i f_i g_i + N(0, (z C)² I)) / L. The noise is drawn anew at every call, also of
        parameters that no example has a gradient of, and in a step that has drawn no example.
        """
        settings, gradients = self.settings, []
        deviation = settings.noise * settings.clip
        for parameter in self._parameters:
            total = self._noise.normal(tuple(parameter.shape)).mul_(deviation).to(parameter.device)
            held = self._sums.get(parameter)
            if held is not None:
                total += held
            gradients.append(total.div_(settings.expected_batch).to(parameter.dtype))
        self._sums.clear()
        return gradients
