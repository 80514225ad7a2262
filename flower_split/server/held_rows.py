"""The trunk's part of DP-SGD in one session: gradients by row, held until the silo weighs them."""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedConfig

from flower_split.errors import AdapterError, HandshakeError, SequenceError, TrunkBusyError
from flower_split.privacy import ClippedSum, PrivacySettings, RowGradients
from flower_split.privacy.clipping import checked_factors
from flower_split.privacy.row_gradients import RowRecord
from flower_split.segments.refusals import check_rows_apart
from flower_split.transport.messages import AdapterGrad, SessionLimits, Weigh


class HeldRows:
    """Gradients by row of a session's microbatches, and the sum of those that were weighed.

    Args:
        model: The trunk's, with the session's adapter.
        config: Of the model.
        parameters: Those that the session trains.
        settings: Of DP-SGD, as the silo has them too.
        limits: Of the session: so many microbatches are held at most.

    Raises:
        HandshakeError: the model mixes the rows of a batch, or a tensor is trained whose gradient
            cannot be told row by row.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PreTrainedConfig,
        parameters: Sequence[nn.Parameter],
        settings: PrivacySettings,
        limits: SessionLimits,
    ) -> None:
        try:
            check_rows_apart(config)
            self.watch = RowGradients(model, parameters)
        except AdapterError as error:
            raise HandshakeError(f"privacy: {error}") from error
        self.bytes_by_row = 4 * sum(parameter.numel() for parameter in parameters)
        """Of one row's gradient."""
        self._sum = ClippedSum(parameters, settings)
        self._most = limits.max_in_flight
        self._held: dict[int, RowRecord] = {}

    def check(self, wanted: AdapterGrad) -> None:
        """Raise unless a microbatch's gradient may be treated so.

        Raises:
            SequenceError: it would not be clipped by row.
            TrunkBusyError: too many microbatches are held.
        """
        if wanted not in ("hold", "drop"):
            raise SequenceError(
                f"gradients to {wanted}, in a session whose examples are clipped (dp.noise): they "
                "are held by row until they are weighed"
            )
        if wanted == "hold" and len(self._held) >= self._most:
            raise TrunkBusyError(
                f"the gradients of {self._most} microbatches wait to be weighed, the trunk's limit"
            )

    def hold(self, microbatch: int, record: RowRecord) -> tuple[float, ...]:
        """Keep a microbatch's gradients by row; their squared norms."""
        self._held[microbatch] = record
        return tuple(record.squared_norms().tolist())

    def weigh(self, request: Weigh) -> None:
        """Add a microbatch's gradients to the step's, each times its factor.

        Raises:
            SequenceError: none are held of it.
            WireError: there is not one factor from 0 to 1 for each row.
        """
        record = self._held.get(request.microbatch)
        if record is None:
            raise SequenceError(f"no gradients are held of microbatch {request.microbatch}")
        self._sum.add(record, checked_factors(request.factors, record.rows))
        del self._held[request.microbatch]

    def forget(self) -> None:
        """Begin the step anew."""
        self._held.clear()
        self._sum.forget()

    def gradients(self) -> list[Tensor]:
        """The step's gradients, with noise, in the order of the parameters.

        Raises:
            SequenceError: microbatches were not weighed.
        """
        if self._held:
            raise SequenceError(
                f"a step, and the gradients of microbatch {min(self._held)} were not weighed"
            )
        return self._sum.noisy_mean()

    def close(self) -> None:
        """Watch the model no more; can be called twice."""
        self.forget()
        self.watch.close()
