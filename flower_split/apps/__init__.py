"""Ready-made Flower apps: a folder with a `pyproject.toml` that names them is enough to run."""
