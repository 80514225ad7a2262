"""`CentralPrivacy`: Flower's central differential privacy around FedAvg, with an account of ε.

Clipping every silo's update and adding Gaussian noise to the mean are McMahan et al. 2018,
"Learning Differentially Private Recurrent Language Models", arXiv:1710.06963.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from numpy.typing import NDArray

from flower_split.config.rounds import CENTRAL_STRATEGIES
from flower_split.errors import ConfigError, RoundError
from flower_split.privacy import Gaussians, SecureNoise, check_accountant

logger = logging.getLogger(__name__)

_BELOW = 1 - 1e-6  # rounding makes no update longer than the bound


class CentralPrivacy(DifferentialPrivacyServerSideFixedClipping):
    """Publishes the mean of clipped updates, with noise, and counts what that reveals.

    Of n silos that were asked, with arrays w and replies w_i, a round publishes

        w + (1 / n) (Σ_i (w_i - w) min(1, C / |w_i - w|) + N(0, (z C)² I)),

    with the norm over all tensors together. A silo that has not replied, or not validly, counts as
    an update of zero, so that one silo's data moves the sum by at most 2 C whatever it does. All
    silos weigh the same. What Flower's own wrapper does otherwise is not kept: noise out of numpy's
    global generator, which a resumed run would repeat, and tensors matched by their position.

    Args:
        strategy: A strategy that aggregates as FedAvg does.
        noise: z, the deviation of the noise on the sum in parts of `clip`.
        clip: C, the largest L2 norm of a silo's update.
        delta: δ of the account.
        max_epsilon: ε at which nothing further is published; 0 for any.

    Raises:
        ConfigError: the guarantee does not hold for `strategy`.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        noise: float,
        clip: float,
        delta: float = 1e-5,
        max_epsilon: float = 0.0,
    ) -> None:
        if not (noise > 0 and clip > 0 and 0 < delta < 1 and max_epsilon >= 0):
            raise ValueError(
                f"noise and clip must be above 0, delta between 0 and 1 and max_epsilon not "
                f"negative, not {noise!r}, {clip!r}, {delta!r}, {max_epsilon!r}"
            )
        averages = getattr(type(strategy), "aggregate_train", None)
        if not isinstance(strategy, FedAvg) or averages is not FedAvg.aggregate_train:
            raise ConfigError(
                f"central differential privacy (strategy.dp-noise) is computed for a mean of "
                f"updates, and {type(strategy).__name__} makes something else of them: set "
                f"strategy.name to {' or '.join(map(repr, CENTRAL_STRATEGIES))}"
            )
        super().__init__(strategy, noise, clip, 1)
        self.delta = delta
        self.max_epsilon = max_epsilon
        self.releases = 0
        """Aggregates that were published."""

    def check_budget(self) -> None:
        """Raise `ConfigError` where not one round can be published, or ε not be computed."""
        check_accountant("central differential privacy (strategy.dp-noise)")
        first = self._spent(1).epsilon(self.delta)
        if 0 < self.max_epsilon < first:
            raise ConfigError(
                f"strategy.dp-max-epsilon is {self.max_epsilon:g}, and the first round has ε = "
                f"{first:.3g} at strategy.dp-noise {self.noise_multiplier:g}: raise either"
            )

    def foreseen(self, rounds: int) -> tuple[float, int]:
        """ε of so many rounds, and how many of them stay within `max_epsilon`.

        Raises:
            ConfigError: the accountant is not installed.
        """
        epsilon = self._spent(rounds).epsilon(self.delta)
        if not self.max_epsilon or epsilon <= self.max_epsilon:
            return epsilon, rounds
        beyond = bisect_right(
            range(1, rounds + 1),
            self.max_epsilon,
            key=lambda count: self._spent(count).epsilon(self.delta),
        )
        return epsilon, beyond

    def epsilon(self) -> float:
        """ε of all that was published.

        Raises:
            ConfigError: the accountant is not installed.
        """
        return self._spent(self.releases).epsilon(self.delta)

    @property
    def is_spent(self) -> bool:
        """Whether another round would go beyond `max_epsilon`."""
        after = self._spent(self.releases + 1)
        return bool(self.max_epsilon) and after.epsilon(self.delta) > self.max_epsilon

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The inner strategy's messages.

        Raises:
            RoundError: one silo is asked, whose update nothing would be mixed with.
        """
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if len(messages) == 1:
            raise RoundError(
                "one silo is asked to train, and central differential privacy hides a silo among "
                "others: raise strategy.fraction-train or strategy.min-nodes"
            )
        self.current_arrays, self.num_sampled_clients = arrays, max(1, len(messages))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of the clipped updates with noise, and the silos' metrics, all weighed alike."""
        counted = [reply for reply in replies if not reply.has_error()]
        sent = {name: array.numpy() for name, array in self.current_arrays.items()}
        norms = [self._clip(reply, sent) for reply in counted]
        arrays, metrics = self.strategy.aggregate_train(server_round, counted)
        if arrays is None:
            return None, metrics
        asked, noise = self.num_sampled_clients, SecureNoise()
        deviation = self.noise_multiplier * self.clipping_norm / asked
        published = ArrayRecord()
        for name, mean in arrays.items():
            update = (mean.numpy() - _wide(sent[name])) * (len(counted) / asked)
            drawn = noise.normal(update.shape).numpy() * deviation
            published[name] = Array(
                np.asarray(_wide(sent[name]) + update + drawn).astype(sent[name].dtype)
            )
        self.releases += 1
        clipped = sum(norm > self.clipping_norm for norm in norms)
        logger.info(
            "round %d: %d of %d updates were clipped to %g; noise of deviation %.3g on their mean",
            *(server_round, clipped, asked, self.clipping_norm, deviation),
        )
        return published, metrics

    def _clip(self, reply: Message, sent: Mapping[str, NDArray[np.generic]]) -> float:
        """Clip the update of a reply, whose weight becomes 1; its norm before."""
        ((key, arrays),) = reply.content.array_records.items()
        if arrays.keys() != sent.keys():
            raise RoundError("a reply has other tensors than the message: nothing can be clipped")
        updates = {name: _wide(arrays[name].numpy()) - _wide(sent[name]) for name in sent}
        norm = math.sqrt(sum(float(np.square(update).sum()) for update in updates.values()))
        factor = min(1.0, self.clipping_norm * _BELOW / norm) if norm else 1.0
        reply.content[key] = ArrayRecord(
            {name: Array(_wide(sent[name]) + factor * updates[name]) for name in sent}
        )
        ((key, metrics),) = reply.content.metric_records.items()
        weight = str(getattr(self.strategy, "weighted_by_key", "num-examples"))
        reply.content[key] = MetricRecord({**metrics, weight: 1})
        return norm

    def _spent(self, releases: int) -> Gaussians:
        # Two updates of at most C are at most 2 C apart.
        return Gaussians().released(
            sensitivity=2.0, deviation=self.noise_multiplier, times=releases
        )


def _wide(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array.astype(np.float64)
