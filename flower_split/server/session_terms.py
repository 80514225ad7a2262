"""The terms of a trunk's sessions: what a silo must bring, and whether it does."""

from dataclasses import dataclass

from flower_split.adapters import AdapterPlan
from flower_split.config.wire import WireConfig
from flower_split.lowrank import Allowance, Scaling
from flower_split.optimization.settings import OptimizerSettings
from flower_split.privacy import PrivacySettings
from flower_split.segments import Cuts
from flower_split.server.handshake import check_spec
from flower_split.transport.messages import SessionSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionTerms:
    """What the sessions of one trunk have in common; `TrunkEngine` says what each field means."""

    fingerprint: str
    """Of the uncut model."""
    cuts: Cuts
    """Around all of the trunk's layers, however many stages hold them."""
    weights_dtype: str
    """Of the trunk's weights."""
    mode: str
    plan: AdapterPlan | None
    wire: WireConfig | None = None
    optimizer: OptimizerSettings | None = None
    privacy: PrivacySettings | None = None
    pack: str = ""
    dtype: str = ""
    loaded_adapter: str = ""
    prefix_tokens: int | None = None

    def describe(self, purpose: str = "train") -> SessionSpec:
        """The specification that a session must bring."""
        return SessionSpec(
            purpose="evaluate" if purpose == "evaluate" else "train",
            fingerprint=self.fingerprint,
            num_layers=self.cuts.num_layers,
            bottom_layers=self.cuts.bottom_layers,
            top_layers=self.cuts.top_layers,
            dtype=self.dtype or self.weights_dtype,
            trunk_adapters=self.mode,
            adapter="" if self.plan is None else self.plan.json,
            wire=self.wire or WireConfig(),
            optimizer=self.optimizer or OptimizerSettings(),
            privacy=self.privacy or PrivacySettings(),
            pack=self.pack,
            loaded_adapter=self.loaded_adapter,
            prefix_tokens=self.prefix_tokens or 0,
        )

    def check(self, spec: SessionSpec, allowance: Allowance | None) -> Scaling | None:
        """The scaling that the silo tells.

        Raises:
            HandshakeError: it names the field in which the two parties differ.
        """
        free = set[str]()
        if self.wire is None:
            free.add("wire")
        if self.optimizer is None:
            free.add("optimizer")
        if self.privacy is None:
            free.add("privacy")
        if not self.dtype:
            free.add("dtype")
        if self.prefix_tokens is None:
            free.add("prefix_tokens")
        return check_spec(self.describe(spec.purpose), spec, free=free, allowance=allowance)
