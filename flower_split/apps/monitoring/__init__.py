"""The live page of a run: a server that reads a run's folder, and never changes it."""
