"""The span index: does a token sequence of any length occur in the training data, how often, and where exactly.

`build` writes the index of a shard and `arrays` opens it; `search` answers, under `filters` that `prepare` makes ready;
`merge` puts the answers of several shards together; `reference` is the same search, slow and plain, without numba.
Nothing is imported here, so that `arrays`, `filters` and `reference` stay light.
"""
