"""Checks of an app before it runs: everything that a run would find out late, in seconds."""
