"""Checkpoints of a run: the inner strategy's state, the result, and what the trunk keeps."""
