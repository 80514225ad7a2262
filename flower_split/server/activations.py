"""The budget of activations that the trunk keeps for backward passes, over all sessions."""


class ActivationBudget:
    """Counts tokens whose activations are kept.

    Args:
        max_tokens: The bound, in rows x tokens as computed, padding included; 0 for none.
    """

    def __init__(self, max_tokens: int = 0) -> None:
        self.max_tokens = max_tokens
        self.kept = 0
        """Tokens whose activations are kept now."""

    @property
    def room(self) -> float:
        """Tokens that can yet be kept; infinite without a bound."""
        return self.max_tokens - self.kept if self.max_tokens else float("inf")

    def take(self, tokens: int) -> None:
        """Count `tokens` as kept."""
        self.kept += tokens

    def give_back(self, tokens: int) -> None:
        """Count `tokens` as freed."""
        self.kept -= tokens
