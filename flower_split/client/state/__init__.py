"""The states that a silo's sessions leave, in files of its own."""
