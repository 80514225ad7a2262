"""How the trunk puts the requests of several sessions together, and what it keeps of them."""

from dataclasses import dataclass

from flower_split.config.trunk import TrunkConfig


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """Settings of a trunk's queue; what they mean is said at the same names of `TrunkConfig`."""

    batching: bool = False
    batch_tokens: int = TrunkConfig.batch_tokens
    gather_ms: float = TrunkConfig.gather_ms
    recompute: bool = False
    max_activation_tokens: int = 0

    @classmethod
    def of_trunk(cls, trunk: TrunkConfig) -> "BatchSettings":
        """Those of a run."""
        return cls(
            batching=trunk.batching,
            batch_tokens=trunk.batch_tokens,
            gather_ms=trunk.gather_ms,
            recompute=trunk.recompute,
            max_activation_tokens=trunk.max_activation_tokens,
        )
