"""The REST API over indexes, and its Python client. Nothing is computed here: routes call functions of `indexer`.

    from search_api import Settings, create_app

Each name is imported when it is asked for: keys and client need no web framework.

The path of one request, `POST /v1/count`:

1. `app` has built the application; `http_edge` gives the request an id, reads its body within the limits, and logs it.
2. `routes/ngrams` is its route. FastAPI checks the body against `request_models`.
3. `request.authorized` lets `gate` check the key (`keys`, `actions`), its rate and its budget. It picks the
   answer's media type. The route gets an `AuthorizedRequest`.
4. `AuthorizedRequest.answer` takes the run's reader from `runs` and calls the route's function in a thread of
   `workers`. The function calls `indexer` with a selection of what the key may see, and returns an `Answer`.
5. The answer gets the fields that all answers share (`schemas.Envelope`) and its form: JSON, or rows by `negotiation`.
   The tokens that it shows are charged to the key and written to the `read_log`.
6. Whatever is raised on the way becomes a problem document (`problems`).

The other modules:

| module | what it does |
|---|---|
| `settings`, `service` | what the operator sets, with every limit; the parts of one running server |
| `schemas`, `record_models` | the answers in the OpenAPI description, made from the records of `indexer` |
| `cursors` | signs and reads the cursors of pages |
| `jobs`, `sandboxes` | many traces in the background; the processes that run SQL |
| `metrics` | numbers for Prometheus |
| `infinigram_ranks` | what `find` of infini-gram's API answered lately |
| `client/` | the Python client; it imports no module of the server |
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search_api.app import create_app
    from search_api.settings import Limits, Settings

__all__ = ["Limits", "Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "search_api.app" if name == "create_app" else "search_api.settings"
    return getattr(importlib.import_module(module), name)
