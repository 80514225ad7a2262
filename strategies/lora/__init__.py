"""Strategies that aggregate LoRA adapters, one algorithm a file."""
