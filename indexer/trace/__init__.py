"""`kiseki trace` and `kiseki count`: where a text or its parts were trained on."""
