"""The routes of /v1 by subject. Each translates a request, reads a run through `AuthorizedRequest`, and says what it found."""
