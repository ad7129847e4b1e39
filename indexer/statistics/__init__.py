"""Numbers that help to read a batch: what a sequence is like, and how much of it was seen before."""
