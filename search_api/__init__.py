"""The REST API over indexes. Routes translate, and call functions of `indexer`.

from search_api import Settings, create_app

`create_app` is imported when it is asked for: keys and client need no web framework.
"""

from typing import TYPE_CHECKING, Any

from search_api.settings import Limits, Settings

if TYPE_CHECKING:
    from search_api.app import create_app

__all__ = ["Limits", "Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from search_api.app import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
