"""The routes of /v1 by subject. Each translates a request, asks a run through `Ask`, and says what it found."""
