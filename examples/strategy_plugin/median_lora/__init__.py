"""Median aggregation of LoRA factors."""
