"""`kiseki search`: the query language, hits, facets, snippets."""
