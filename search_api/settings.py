"""What the server is told at its start, and every limit: in one table, with its default and what it is for.

`RequestLimits` are part of the contract: they stand in the OpenAPI description and are the same on every server. `Limits` are
the operator's: `kiseki serve --limit NAME=VALUE`. docs/api.md shows both tables.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from train_hooks.export_format.errors import InputError

__all__ = ["REQUEST", "Limits", "RequestLimits", "Settings", "limit_rows", "limits_of"]


def _limit(default: float, what: str) -> int:
    """A field with its help. Typed int, since most are; a float's own annotation decides."""
    return field(default=default, metadata={"help": what})  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestLimits:
    """Bounds of what a request may say; beyond them is 422 `validation`."""

    text_characters: int = _limit(200_000, "characters of a text to trace, of a prompt, of a chat message")
    token_ids: int = _limit(50_000, "token ids of a query")
    messages: int = _limit(1000, "chat messages of a trace")
    min_length: int = _limit(10_000, "largest `min_length` of a trace, in tokens")
    spans: int = _limit(10_000, "largest `max_spans` of a trace")
    query_characters: int = _limit(10_000, "characters of a search query")
    hits: int = _limit(100, "hits listed for a span of a trace")
    context_tokens: int = _limit(512, "tokens of context on either side of a hit")
    page_rows: int = _limit(1000, "rows of a page; go on with `cursor`")
    step_points: int = _limit(10_000, "largest `max_points` of steps, beyond which only spikes come")
    batch_sequences: int = _limit(100, "addresses of `/v1/sequences:batchGet`")
    batch_traces: int = _limit(32, "items of `/v1/trace:batch`; more are a job")
    job_traces: int = _limit(1000, "items of a job")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds that the operator sets."""

    body_bytes: int = _limit(1 << 20, "bytes of a request's body; more is 413 `body-too-large`")
    body_timeout_s: float = _limit(10.0, "seconds for a body to arrive; then 408 `body-timeout`")
    deadline_s: float = _limit(2.0, "seconds for one answer; then 504 `deadline`")
    explain_deadline_s: float = _limit(
        10.0, "seconds for the explanation of a step, or for steps thinned out; then 504 `deadline`"
    )
    searches_at_once: int = _limit(4, "searches that run side by side")
    searches_waiting: int = _limit(64, "searches that wait for their turn; more are 503 `busy`")
    requests_per_minute: int = _limit(6000, "requests a minute of one key, or of one address without keys; then 429")
    request_burst: int = _limit(400, "requests at once before the rate counts")
    snippet_tokens: int = _limit(
        128, "tokens of context beside a hit, whatever was asked; the answer says `snippets_cut`"
    )
    sequence_tokens: int = _limit(
        1 << 20, "tokens of all sequences of one answer; fewer addresses at a time when it is more"
    )
    reload_interval_s: float = _limit(1.0, "seconds between looks for a new generation, new tombstones, new keys")
    generation_keep_s: float = _limit(300.0, "seconds that cursors of a replaced generation go on; then 410")
    jobs_kept: int = _limit(64, "jobs known at a time, running and finished; more are 503 `busy`")
    job_result_bytes: int = _limit(64 << 20, "bytes of all results of jobs in memory; beyond, a job fails")
    job_item_s: float = _limit(30.0, "seconds for one item of a job; then it is a problem in its line")
    job_keep_s: float = _limit(3600.0, "seconds that a finished job's result is kept; then 404")


REQUEST = RequestLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """run_dirs: the runs to serve. keys_file: who may ask what; None serves everybody everything. sql: answer `/v1/sql`.

    read_log: file that every answered question is appended to. log: JSON lines about requests on standard error.
    """

    run_dirs: tuple[Path, ...]
    limits: Limits = field(default_factory=Limits)
    keys_file: Path | None = None
    read_log: Path | None = None
    log: bool = False
    sql: bool = False


def limit_rows(kind: type[Limits] | type[RequestLimits]) -> Iterator[tuple[str, str, str]]:
    """(name, default, help) of every limit, as docs/api.md shows them."""
    for item in dataclasses.fields(kind):
        default = item.default
        shown = f"{default:,}" if isinstance(default, int) else f"{default:g}"
        yield item.name, shown, item.metadata["help"]


def limits_of(given: Mapping[str, str]) -> Limits:
    """The limits with some of them set. Raises InputError for an unknown name, or a value that is no number above 0."""
    defaults = {item.name: item.default for item in dataclasses.fields(Limits)}
    values: dict[str, float] = {}
    for name, text in given.items():
        if name not in defaults:
            raise InputError(f"--limit: expected one of {', '.join(defaults)}, found {name!r}")
        try:
            values[name] = int(text) if isinstance(defaults[name], int) else float(text)
        except ValueError as error:
            raise InputError(f"--limit {name}: expected a number, found {text!r}") from error
        if not 0 < values[name] < 1e15:
            raise InputError(f"--limit {name}: expected a number above 0, found {text!r}")
    return Limits(**values)  # type: ignore[arg-type]
