"""The silo's side in Flower: `SplitSession`, for own ClientApps and the ready-made one."""

from flower_split.client.session import SplitSession

__all__ = ["SplitSession"]
