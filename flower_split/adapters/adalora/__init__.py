"""AdaLoRA over a cut: one budget of ranks and one orthogonal term, of layers at two parties."""
