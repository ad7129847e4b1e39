"""`kiseki export verify`: is everything there, and unchanged?"""
