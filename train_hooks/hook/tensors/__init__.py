"""A loader's micro-batches as named tensors, and copies of them that nobody else writes to."""
