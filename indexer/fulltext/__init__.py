"""The full-text index of a shard (Tantivy), and what it takes for a term."""
