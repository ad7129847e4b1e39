"""A Python client of the API. Answers are the API's JSON; problems become KisekiError with their detail."""

from types import TracebackType
from typing import Any, Self

import httpx

from train_hooks.export_format.errors import InputError, KisekiError

__all__ = ["Client"]


class Client:
    """One server. Use it as a context manager, or call `close`."""

    def __init__(self, base_url: str, *, timeout_s: float = 30.0) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def runs(self) -> list[dict[str, Any]]:
        """`GET /v1/runs`."""
        return list(self._answer(self._http.get("/v1/runs"))["runs"])

    def trace(self, text: str, **request: Any) -> dict[str, Any]:
        """`POST /v1/trace`; the keywords are the fields of the request."""
        return self._answer(self._http.post("/v1/trace", json={"text": text, **request}))

    def sequence(self, address: str) -> dict[str, Any]:
        """`GET /v1/sequences/{address}`."""
        return self._answer(self._http.get(f"/v1/sequences/{address}"))

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        if response.is_success:
            return dict(response.json())
        try:
            detail = str(response.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"the server answered {response.status_code}"
        raise (InputError if response.status_code < 500 else KisekiError)(detail)
