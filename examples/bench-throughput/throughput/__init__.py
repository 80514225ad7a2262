"""What the parts of the throughput benchmark share."""
