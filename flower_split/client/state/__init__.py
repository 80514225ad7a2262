"""What a silo keeps from one session to the next, in files of its own."""
