"""Questions to the index of a run on this machine's disks. `Client` asks a server instead."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from indexer.limits import MIN_LENGTH_DEFAULT
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.records import Trace
from indexer.trace.trace import TraceOptions
from indexer.trace.trace import trace as trace_in_index

__all__ = ["open_run", "trace"]


def open_run(run_dir: Path | str) -> IndexReader:
    """The index of a run as it is published now; open it again to see more.

    Raises RunError where the directory holds no run, IncompleteError where `kiseki index` has not indexed it yet.
    """
    return IndexReader.open(run_dir)


def trace(
    run: IndexReader | Path | str,
    text: str | None = None,
    *,
    token_ids: Sequence[int] | None = None,
    prompt: str = "",
    min_length: int = MIN_LENGTH_DEFAULT,
    before_step: int | None = None,
    first_step: int | None = None,
    last_step: int | None = None,
    attempt: int | None = None,
    dp_rank: int | None = None,
    source: str | None = None,
    document_id: str | None = None,
    lineage: Literal["canonical", "all"] = "canonical",
    max_spans: int | None = None,
    num_hits: int = 5,
    context_tokens: int = 24,
) -> Trace:
    """Where parts of a text occur in what was trained on: maximal spans of at least `min_length` tokens, with exact counts.

    `run` is a run directory, or what `open_run` returned, which is faster for several questions. Give a text, or token ids of
    the run's tokenizer. `before_step=N + 1` is what the model checkpoint of step N had seen. `prompt` counts for the order of
    documents alone. At most `max_spans` spans are described (by default 5% of the tokens, at least 5), each with at most
    `num_hits` places and `context_tokens` tokens around them. Raises QueryError for input that cannot be answered,
    RunError and IncompleteError as `open_run` does.
    """
    selection = Selection(
        before_step=before_step,
        first_step=first_step,
        last_step=last_step,
        attempt=attempt,
        dp_rank=dp_rank,
        source=source,
        document_id=document_id,
        lineage=lineage,
    )
    options = TraceOptions(
        min_length=min_length,
        selection=selection,
        max_spans=max_spans,
        num_hits=num_hits,
        context_tokens=context_tokens,
    )
    reader = run if isinstance(run, IndexReader) else open_run(run)
    return trace_in_index(reader, text, token_ids=token_ids, prompt=prompt, options=options)
