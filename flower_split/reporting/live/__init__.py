"""A run as it goes, for people: what its events add up to, and the parts of a page that show it."""

from flower_split.reporting.live.fragments import fragments
from flower_split.reporting.live.view import RunView

__all__ = ["RunView", "fragments"]
