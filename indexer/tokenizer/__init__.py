"""The run's tokenizer: text to tokens, tokens to text and bytes."""
