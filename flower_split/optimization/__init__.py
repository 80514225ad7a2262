"""What both sides of the cut compute alike: AdamW, learning rates, global-norm clipping."""
