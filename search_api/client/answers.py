"""What the client gives back: the API's JSON as dictionaries that know a little more.

`Traced` shows itself in a notebook; rows become Arrow tables and pandas frames. Corpus text is escaped in HTML, always.
pyarrow is imported when the first table is made: it takes longer than everything else here.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from search_api.client.trace_html import trace_html
from train_hooks.export_format.errors import InputError, KisekiError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["ApiError", "Found", "RequestError", "Table", "Traced"]

Json = dict[str, Any]


class ApiError(KisekiError):
    """A problem that the server answered with. kind: its stable name, such as `deadline`; "" where it was no problem."""

    def __init__(self, status: int, kind: str, detail: str, request_id: str) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.request_id = status, kind, detail, request_id


class RequestError(ApiError, InputError):
    """A problem of 4xx: what was asked cannot be answered as it was asked."""


class Found(dict[str, Any]):
    """An answer, with what it says of itself. Everything else is `found["…"]`."""

    @property
    def generation(self) -> int:
        """The generation that answered."""
        return int(self["generation"])

    @property
    def complete(self) -> bool:
        """No shard failed and nothing was cut."""
        return not self["shards_failed"] and not self["truncated"]


class Traced(Found):
    """A trace. `spans` and `documents` are lists of dictionaries, by place in the text and by rank."""

    @property
    def spans(self) -> list[Json]:
        """The maximal spans."""
        return list(self["spans"])

    @property
    def documents(self) -> list[Json]:
        """The documents behind the listed hits, the first one covers most."""
        return list(self["documents"])

    def to_arrow(self) -> "pa.Table":
        """One row a span, without its hits."""
        import pyarrow as pa

        rows = [{name: value for name, value in span.items() if name != "hits"} for span in self["spans"]]
        return pa.Table.from_pylist(rows) if rows else pa.table({})

    def to_pandas(self) -> "pd.DataFrame":
        """The same as a data frame. Raises InputError without pandas."""
        return to_pandas(self.to_arrow())

    def _repr_html_(self) -> str:
        return trace_html(self)


class Table(list[Json]):
    """Rows, which are an Arrow table as well. truncated: there were more."""

    def __init__(self, table: "pa.Table", *, truncated: bool = False) -> None:
        super().__init__(table.to_pylist())
        self._table, self.truncated = table, truncated

    def to_arrow(self) -> "pa.Table":
        """The rows as an Arrow table."""
        return self._table

    def to_pandas(self) -> "pd.DataFrame":
        """The rows as a data frame. Raises InputError without pandas."""
        return to_pandas(self._table)


def to_pandas(table: "pa.Table") -> "pd.DataFrame":
    """A data frame. Raises InputError without pandas."""
    try:
        import pandas  # noqa: F401
    except ImportError as error:
        raise InputError("to_pandas needs pandas: pip install pandas; or take to_arrow") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame


def read_arrow(response: httpx.Response) -> "pa.Table":
    """The rows of an answer that is an Arrow stream."""
    import pyarrow as pa

    return pa.ipc.open_stream(response.content).read_all()


def concat_tables(tables: "Sequence[pa.Table]") -> "pa.Table":
    """The rows of all tables; of none, a table without columns."""
    import pyarrow as pa

    return pa.concat_tables(tables) if tables else pa.table({})


def error_of(status: int, body: object, request_id: str) -> ApiError:
    """The error of an answer that is none of 2xx."""
    document: Mapping[str, Any] = body if isinstance(body, dict) else {}
    kind = str(document.get("type", "")).rpartition(":")[2]
    detail = str(document.get("detail") or f"the server answered {status}")
    return (RequestError if status < 500 else ApiError)(status, kind, detail, request_id)
