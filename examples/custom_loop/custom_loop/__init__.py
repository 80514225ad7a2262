"""A Flower app with its own training loop."""
