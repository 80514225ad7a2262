"""How a silo's tensors reach the trunk: one interface, in process and over gRPC."""
