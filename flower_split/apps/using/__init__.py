"""A tuned model in use: from a run's output folder to answers through the split."""
