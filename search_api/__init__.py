"""The REST API over indexes. Routes translate, and call functions of `indexer`.

from search_api import Settings, create_app
"""

from search_api.app import create_app
from search_api.settings import Settings

__all__ = ["Settings", "create_app"]
