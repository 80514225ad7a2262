"""The split machinery under a Flower strategy: host, sessions of a round, messages and replies."""
