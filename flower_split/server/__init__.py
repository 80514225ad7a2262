"""The trunk's side: engine, sessions, and the gRPC server that hosts them."""
