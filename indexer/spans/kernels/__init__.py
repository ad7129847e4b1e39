"""Compiled loops over the span index."""
