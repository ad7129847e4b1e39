"""What a Megatron training must have consumed, recomputed from the index caches that its data sets left."""
