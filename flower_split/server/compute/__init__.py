"""The trunk's queue and compute thread: which requests are computed next, together, and how."""
