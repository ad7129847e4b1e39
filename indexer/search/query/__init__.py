"""The query language of `kiseki search`: text → records → query objects of the engine. docs/query_language.md has it."""

from indexer.search.query.parser import parse
from indexer.search.query.records import Node

__all__ = ["Node", "parse"]
