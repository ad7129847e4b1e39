"""The Python client of the API. It imports no module of the server.

    from search_api.client import Client

`Client` waits for each answer; `AsyncClient` is the same for programs with an event loop.
"""

from search_api.client.answers import ApiError, Found, Json, RequestError, Table, Traced
from search_api.client.asynchronous import AsyncClient, AsyncRows
from search_api.client.requests import ClientOptions
from search_api.client.sync import Client

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncRows",
    "Client",
    "ClientOptions",
    "Found",
    "Json",
    "RequestError",
    "Table",
    "Traced",
]
