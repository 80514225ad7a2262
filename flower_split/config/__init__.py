"""Configuration of a run: sections, their checks, and how they are read from Flower."""
