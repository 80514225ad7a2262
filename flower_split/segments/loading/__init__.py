"""Reading a party's own tensors, and nothing else, from a checkpoint."""
