"""LLM-jp's dump of what a training consumed, `used_data_{fold}/used_data_{rank}.jsonl.gz`: imported and written."""
