"""What an OLMo-core training must have consumed, recomputed from its configuration and its saved data order."""
