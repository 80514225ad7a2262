"""The OpenAI-compatible endpoint of a tuned model: one answer at a time, by bounded requests."""
