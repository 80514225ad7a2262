"""A Flower app on the whole model, with LoRA strategies."""
