"""The silo's end of the gRPC stream, and the frames that both ends exchange."""
