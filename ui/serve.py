"""`kiseki serve`: pages and API of runs in one process, on one port.

Beyond loopback it serves only who has a key, unless the operator insists. The pages ask the API as everybody does; where
there are keys they use the one in KISEKI_API_KEY, and whoever opens them sees what that key may see.
"""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_hooks.export_format.errors import InputError
from ui.terminal import console

__all__ = ["ServeOptions", "serve_runs"]

Scope = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]
API_PATHS = ("/v1/", "/compat/", "/healthz", "/readyz", "/metrics", "/docs", "/redoc", "/openapi.json")
API_URL_VARIABLE, API_KEY_VARIABLE = "KISEKI_API_URL", "KISEKI_API_KEY"
MAX_CONNECTIONS = 1024
KEEP_ALIVE_S = 30
"""Longer than clients keep an idle connection (httpx: 5 s): else one is closed as a request sets out on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """keys, read_log: files of `search_api`. limits: NAME=VALUE. log: JSON lines about requests on standard error."""

    host: str
    port: int
    pages: bool = True
    keys: Path | None = None
    read_log: Path | None = None
    insecure_no_keys: bool = False
    limits: Sequence[str] = ()
    sql: bool = False
    log: bool = False

    def check(self) -> None:
        """Raises InputError where it would serve strangers, or the pages would have no key."""
        if self.keys is None and not self.insecure_no_keys and not _is_loopback(self.host):
            raise InputError(
                f"expected --keys FILE to listen on {self.host}, beyond this machine (see `kiseki keys create`); or "
                "insist with --insecure-no-keys"
            )
        if self.keys is not None and self.pages and not os.environ.get(API_KEY_VARIABLE):
            raise InputError(
                f"with --keys the pages need a key of their own in {API_KEY_VARIABLE}; or serve --api-only"
            )


def serve_runs(runs: Sequence[Path], options: ServeOptions) -> None:
    """Serve until stopped. Raises KisekiError where a run cannot be opened, InputError where the port is taken."""
    options.check()
    try:
        import uvicorn

        from search_api import Settings, create_app
        from search_api.settings import limits_of
    except ImportError as error:
        raise InputError(f"serving needs more packages ({error}); install them: pip install 'kiseki[ui]'") from error
    limits = limits_of(dict(_name_and_value(text) for text in options.limits))
    api = create_app(
        Settings(
            run_dirs=tuple(runs),
            limits=limits,
            keys_file=options.keys,
            read_log=options.read_log,
            log=options.log,
            sql=options.sql,
        )
    )
    listener = _listen(options.host, options.port)
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    app: Any = _with_pages(api, url) if options.pages else api
    console.output.print(
        f"{'pages and API' if options.pages else 'API'} of {', '.join(map(str, runs))}: {url}   "
        f"(API description: {url}/docs)",
        markup=False,
    )
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5,
        limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_S,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name_and_value(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--limit: expected NAME=VALUE, found {text!r}")
    return name.strip(), value.strip()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # so named, asyncio sets TCP_NODELAY: 40 ms
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host} port {port}: {error}; give another --port") from error
    listener.listen(128)
    return listener


def _with_pages(api: Any, url: str) -> AsgiApp:
    os.environ[API_URL_VARIABLE] = url
    try:
        import streamlit
    except ImportError as error:
        raise InputError(
            f"the pages need streamlit ({error}): pip install 'kiseki[ui]', or serve --api-only"
        ) from error
    site: AsgiApp = streamlit.App(
        Path(__file__).parent / "pages" / "main.py", lifespan=lambda _: api.router.lifespan_context(api)
    )

    async def by_path(
        scope: Scope, receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]
    ) -> None:
        to_api = scope["type"] == "http" and scope["path"].startswith(API_PATHS)
        await (api if to_api else site)(scope, receive, send)

    return by_path
