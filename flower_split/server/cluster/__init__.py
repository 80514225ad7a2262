"""A trunk over several machines: stages and replicas as actors of a Ray cluster."""
