"""The cut points of a model: how many layers each party holds."""

from dataclasses import dataclass

from flower_split.errors import CutError


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Bottom layers 0 … k-1, trunk layers k … n-m-1, top layers n-m … n-1.

    Raises:
        CutError: a count is negative, or no layer is left for the trunk.
    """

    bottom_layers: int
    """k: layers the silo holds after the embeddings."""
    top_layers: int
    """m: layers the silo holds before the head."""
    num_layers: int
    """n: layers of the uncut model."""

    def __post_init__(self) -> None:
        for name in ("bottom_layers", "top_layers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise CutError(f"{name} must be an integer of at least 0, not {value!r}")
        if self.bottom_layers + self.top_layers >= self.num_layers:
            raise CutError(
                f"bottom_layers {self.bottom_layers} and top_layers {self.top_layers} leave no "
                f"layer of {self.num_layers} for the trunk; their sum must be at most "
                f"{self.num_layers - 1}"
            )

    @property
    def bottom_range(self) -> range:
        """Indices of the bottom's layers."""
        return range(self.bottom_layers)

    @property
    def trunk_range(self) -> range:
        """Indices of the trunk's layers."""
        return range(self.bottom_layers, self.num_layers - self.top_layers)

    @property
    def top_range(self) -> range:
        """Indices of the top's layers."""
        return range(self.num_layers - self.top_layers, self.num_layers)
