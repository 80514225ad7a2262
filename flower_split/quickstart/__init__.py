"""The quickstart's raw material: a small base model and the text of its silos, both offline."""

BASE_MODEL = "flower_split.quickstart:base"
"""Value of `model.name` for the base model that is shipped as package data."""

__all__ = ["BASE_MODEL"]
