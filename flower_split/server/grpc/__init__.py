"""The trunk's end of the gRPC stream."""
