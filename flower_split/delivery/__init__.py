"""The delivery of a silo's share of the model: the server's pack, the silo's cache."""
