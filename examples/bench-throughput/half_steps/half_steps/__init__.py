"""Split fine-tuning with a Flower message for every half of a step."""
