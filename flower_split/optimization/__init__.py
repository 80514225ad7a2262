"""What several packages compute alike: AdamW, learning rates, clipping, perplexity."""
