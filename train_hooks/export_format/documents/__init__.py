"""File formats of documents beside tokenized data: sidecars and Dolma's lists."""
