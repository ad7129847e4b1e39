"""`kiseki document`: when a document was trained on."""
