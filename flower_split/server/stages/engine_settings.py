"""`EngineSettings`: how a trunk's sessions are hosted, by one engine or by a chain of stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flower_split.adapters import AdapterPlan
from flower_split.config.wire import WireConfig
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.segments import Cuts, layer_index
from flower_split.server.compute.queue import BatchSettings
from flower_split.server.session_terms import SessionTerms
from flower_split.server.snapshots import SnapshotStore
from flower_split.transport.messages import SessionLimits


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineSettings:
    """What `TrunkEngine` takes beside its trunk; it says what each of them means."""

    plan: AdapterPlan | None = None
    mode: str = "frozen"
    """Of the whole trunk."""
    initial: Mapping[str, Tensor] | None = None
    wire: WireConfig | None = None
    optimizer: OptimizerSettings | None = None
    privacy: PrivacySettings | None = None
    limits: SessionLimits = field(default_factory=SessionLimits)
    keep_optimizer: bool = False
    batching: BatchSettings = field(default_factory=BatchSettings)
    """Of every stage."""
    pack: str = ""
    dtype: str = ""
    shares_adapter: bool = False
    follows_autocast: bool = True
    snapshots: SnapshotStore | None = None
    prefix_tokens: int | None = None

    def terms(self, *, fingerprint: str, cuts: Cuts, weights_dtype: str) -> SessionTerms:
        """Those of the sessions of a trunk.

        Args:
            fingerprint: Of the uncut model.
            cuts: Around all of the trunk's layers.
            weights_dtype: Of its weights.
        """
        return SessionTerms(
            fingerprint=fingerprint,
            cuts=cuts,
            weights_dtype=weights_dtype,
            mode=self.mode,
            plan=None if self.mode == "frozen" else self.plan,
            wire=self.wire,
            optimizer=self.optimizer,
            privacy=self.privacy,
            pack=self.pack,
            dtype=self.dtype,
            prefix_tokens=self.prefix_tokens,
        )

    def of_stage(self, layers: range, path: str) -> "EngineSettings":
        """Those of a stage, whose sessions the chain has let in on its terms.

        Args:
            layers: Indices of the stage's.
            path: `layers_path` of the model.
        """
        plan = None if self.mode == "frozen" else self.plan
        has = plan is not None and any(layer_index(name, path) in layers for name in plan.names)
        own = {n: t for n, t in (self.initial or {}).items() if layer_index(n, path) in layers}
        return EngineSettings(
            plan=plan if has else None,
            mode=self.mode if has else "frozen",
            initial=own if has and self.initial is not None else None,
            limits=self.limits,
            keep_optimizer=self.keep_optimizer,
            batching=self.batching,
            follows_autocast=self.follows_autocast,
        )
