"""`kiseki serve`: pages and API of one run in one process, on one port."""

import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from train_hooks.export_format.errors import InputError
from ui import console

__all__ = ["serve_run"]

Scope = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]
API_PATHS = ("/v1/", "/healthz", "/docs", "/openapi.json")
API_URL_VARIABLE = "KISEKI_API_URL"


def serve_run(run: Path, *, host: str, port: int, pages: bool) -> None:
    """Serve until stopped. Raises KisekiError where the run cannot be opened, InputError where the port is taken."""
    try:
        import uvicorn

        from search_api import Settings, create_app
    except ImportError as error:
        raise InputError(f"serving needs more packages ({error}); install them: pip install 'kiseki[ui]'") from error
    api = create_app(Settings(run_dirs=(run,)))
    listener = _listen(host, port)
    url = f"http://{host}:{listener.getsockname()[1]}"
    app: Any = _with_pages(api, url) if pages else api
    console.output.print(
        f"{'pages and API' if pages else 'API'} of {run}: {url}   (API description: {url}/docs)", markup=False
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host} port {port}: {error}; give another --port") from error
    listener.listen(128)
    return listener


def _with_pages(api: AsgiApp, url: str) -> AsgiApp:
    os.environ[API_URL_VARIABLE] = url
    try:
        import streamlit
    except ImportError as error:
        raise InputError(
            f"the pages need streamlit ({error}): pip install 'kiseki[ui]', or serve --api-only"
        ) from error
    site: AsgiApp = streamlit.App(Path(__file__).parent / "pages" / "main.py")

    async def by_path(
        scope: Scope, receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]
    ) -> None:
        to_api = scope["type"] == "http" and scope["path"].startswith(API_PATHS)
        await (api if to_api else site)(scope, receive, send)

    return by_path
