"""Tensors on the wire: headers that are checked before anything is allocated, and chunks."""
