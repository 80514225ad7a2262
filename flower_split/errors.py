"""The exception tree: every error that flower_split raises on purpose.

::

    FlowerSplitError
    ├── ConfigError              a setting is unknown, malformed or contradicts another one
    │   └── UsageError           a command's options are malformed or contradict one another
    ├── ModelError               a model cannot be cut, loaded or recognised
    │   ├── CutError             the cut points do not fit the model
    │   ├── UnsupportedFamilyError  the family is not known to be exact when cut
    │   └── WeightsError         a model's weights lack what a party needs
    ├── AdapterError             a LoRA setting or an adapter tensor does not fit the model
    ├── DataError                a data set is missing, empty or broken
    ├── PromptError              a prompt cannot be answered by the tuned model
    ├── DivergenceError          a loss or a gradient is no longer a finite number
    ├── DeliveryError            a silo cannot keep its part of the model, or will not fetch it
    ├── RoundError               a federated round has too little that could be aggregated
    ├── SuperLinkError           Flower's SuperLink has stopped the run, or is gone
    ├── SiloError                a silo's own code failed; only its log says more
    ├── ServiceError             a service cannot be started, or not be used
    ├── StateError               what was kept between rounds cannot be written, or not be used
    │   ├── DamagedStateError    a saved file is incomplete or altered
    │   ├── LedgerError          a ledger cannot be written, or its chain is broken
    │   └── UnsafeFolderError    others may write where it is kept
    └── TrunkError               something between a silo and the trunk
        ├── WireError            a frame failed its checks               INVALID_ARGUMENT
        ├── HandshakeError       the two parties were set up differently  FAILED_PRECONDITION
        ├── SequenceError        a frame came out of order                FAILED_PRECONDITION
        ├── TransformError       a transform at a cut failed              FAILED_PRECONDITION
        ├── TokenError           no token, or one that is used or expired UNAUTHENTICATED
        ├── ForeignRunError      a token of another run or node           PERMISSION_DENIED
        ├── TrunkBusyError       a bound of the trunk was reached         RESOURCE_EXHAUSTED
        ├── DeadlineError        a silo took too long                     DEADLINE_EXCEEDED
        ├── ReplayError          what was sent again differs              ABORTED
        ├── TrunkUnavailableError  the trunk is gone or not reachable     UNAVAILABLE
        │   └── TrunkRestartedError  it is there again, without the run   UNAVAILABLE
        └── CertificateError     the two ends cannot agree on TLS         UNAVAILABLE

The right-hand column is the gRPC status under which a `TrunkError` crosses the wire.
"""

from collections.abc import Iterable


class FlowerSplitError(Exception):
    """Base of every error that flower_split raises on purpose."""


class ConfigError(FlowerSplitError, ValueError):
    """A setting is unknown, malformed or contradicts another one.

    Args:
        message: What is wrong.
        problems: The same, one by one, where `message` is a list of them.
    """

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or tuple(message.splitlines())
        """Everything that is wrong, one by one."""


class UsageError(ConfigError):
    """A command line cannot be followed: an option is malformed or contradicts another one."""


class ModelError(FlowerSplitError, ValueError):
    """A model cannot be cut, loaded or recognised."""


class SharedTensorError(ModelError):
    """A tensor is trained in both halves of a client model, whose passes can then not overlap."""


class CutError(ModelError):
    """The cut points do not fit the model."""


class UnsupportedFamilyError(ModelError):
    """The model's family is not known to be exact when it is cut."""


class WeightsError(ModelError):
    """A model's weights are missing, unreadable, or lack what a party needs."""


class AdapterError(FlowerSplitError, ValueError):
    """A LoRA setting or an adapter tensor does not fit the model."""


class DataError(FlowerSplitError, ValueError):
    """A data set is missing, empty or broken."""


class PromptError(FlowerSplitError, ValueError):
    """A prompt cannot be answered by the tuned model."""


class DivergenceError(FlowerSplitError, ArithmeticError):
    """A loss or a gradient is no longer a finite number."""


class DeliveryError(FlowerSplitError, RuntimeError):
    """A silo cannot keep its part of the model on its disk, or will not fetch as much."""


class RoundError(FlowerSplitError, RuntimeError):
    """A federated round has too little that could be aggregated."""


class SuperLinkError(FlowerSplitError, RuntimeError):
    """Flower's SuperLink has stopped the run, or is gone."""


class SiloError(FlowerSplitError, RuntimeError):
    """A silo's own code failed. The text leaves the silo, so it carries no part of the data."""


class ServiceError(FlowerSplitError, RuntimeError):
    """A service cannot be started, not be reached, or has ended in the middle."""


class StateError(FlowerSplitError, RuntimeError):
    """What was kept between rounds cannot be written, or not be used."""


class DamagedStateError(StateError):
    """A saved file is incomplete or altered."""


class LedgerError(StateError):
    """A ledger cannot be written, or its chain is broken."""


class UnsafeFolderError(StateError):
    """A folder of ours belongs to another user, or others may write into it."""


class TrunkError(FlowerSplitError, RuntimeError):
    """Something went wrong between a silo and the trunk."""


class WireError(TrunkError):
    """A frame failed its checks: size, shape, dtype, checksum or finite values."""


class HandshakeError(TrunkError):
    """The silo and the trunk were set up differently."""


class SequenceError(TrunkError):
    """A frame came out of order."""


class TransformError(TrunkError):
    """A transform at a cut failed, or returned what cannot cross."""


class TokenError(TrunkError):
    """The session token is missing, unknown, used or expired."""


class ForeignRunError(TrunkError):
    """The session token belongs to another run, node or round."""


class TrunkBusyError(TrunkError):
    """A bound of the trunk was reached: sessions, bytes or microbatches in flight."""


class DeadlineError(TrunkError):
    """A silo took too long to send a request, to take a reply, or to do anything at all."""


class ReplayError(TrunkError):
    """A silo that reconnected has other requests than those that the trunk took from it."""


class TrunkUnavailableError(TrunkError):
    """The trunk is gone or cannot be reached."""


class TrunkRestartedError(TrunkUnavailableError):
    """The trunk service is there, and knows nothing of the run any more."""


class AttestationError(TrunkError):
    """The trunk has not shown what the silo's verifier demands of it."""


class CertificateError(TrunkError):
    """TLS between silo and trunk failed: whom they trust, names, dates, or no TLS at all."""
