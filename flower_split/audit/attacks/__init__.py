"""Attacks: each on what one party sees, and nothing of how they are put together."""
