"""The commands of `flower-split`. Torch and what stands on it are imported where they are used."""
