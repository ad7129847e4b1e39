"""`kiseki index`: everything that writes an index."""
