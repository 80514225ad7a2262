"""What the comparison of strategies consists of."""
