"""A chain of stages: one trunk whose contiguous layers are held apart from one another."""
