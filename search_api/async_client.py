"""Moved to `search_api.client` in 0.2.0; this name goes in 0.3.0."""

import warnings

from search_api.client import AsyncClient, AsyncRows

__all__ = ["AsyncClient", "AsyncRows"]

warnings.warn("search_api.async_client is now search_api.client", DeprecationWarning, stacklevel=2)
