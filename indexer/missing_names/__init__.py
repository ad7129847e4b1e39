"""What to answer to a name that is not there: the names that are near."""
