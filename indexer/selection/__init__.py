"""Which rows a question is about, and which of them it may see."""
