"""How the rows of `kiseki sql` are written."""

from enum import StrEnum

__all__ = ["SqlFormat"]


class SqlFormat(StrEnum):
    """How rows of a query are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"
