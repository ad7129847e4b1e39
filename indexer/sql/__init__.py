"""`kiseki sql`: questions in SQL, of the owner and of strangers."""
