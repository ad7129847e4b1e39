"""The API as a real server on a free port of 127.0.0.1, in a thread of the test's process."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from search_api import Settings, create_app

__all__ = ["live_server"]


@contextlib.contextmanager
def live_server(settings: Settings) -> Iterator[str]:
    """Base URL of a server that is stopped at the end."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    config = uvicorn.Config(create_app(settings), log_level="warning", access_log=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
        assert not thread.is_alive()
