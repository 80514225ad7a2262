"""A run's trunk as a strategy sees it, and as it is hosted in a process that has the model."""
