"""Reading an export, whole or growing."""
