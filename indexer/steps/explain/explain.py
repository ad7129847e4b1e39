"""From a step to its explanation.

Each row of the step is compared with the rows of the window, feature by feature (`scoring`): its loss; how improbable its
tokens are by the token frequencies of the window; how many of its token pairs the window lacks; how much of it other rows
of the same step hold too; repetition, compression and scripts; how much of it an earlier step had seen; parts of documents
that this step or the window shows again; how rare its sources are. The step as a whole is compared with the window's steps
in the mean. Nothing here knows what to look for.
"""

import itertools
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.reader import IndexReader
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.steps.explain.documents import again_tokens, repeated_documents, source_mixture, source_surprise
from indexer.steps.explain.kernels import new_pair_shares, shared_shares
from indexer.steps.explain.ngrams import overused_ngrams
from indexer.steps.explain.reading import ExplainedStep, Rows, explained_step, read_rows, read_segments
from indexer.steps.explain.records import Feature, Reason, StepExplanation, UnusualRow
from indexer.steps.explain.scoring import FEATURES, feature_of, reasons_of, score_of
from train_hooks.export_format.errors import QueryError

__all__ = ["explain_step"]

Floats = npt.NDArray[np.float64]
MAX_WINDOW = 10_000
TWIN = 16


def explain_step(
    reader: IndexReader,
    global_step: int,
    *,
    window: int = 50,
    attempt: int | None = None,
    limit: int = 10,
    visibility: Visibility = EVERYTHING,
) -> StepExplanation:
    """Compare a step with the `window` steps before it on its lineage; `limit` rows, documents and n-grams are listed.

    Without `attempt` the canonical step of that number is taken, or where there is none the newest superseded one. Rows of
    which something is hidden are as if they were not there; `seen_share`, which knows hidden steps, is left out then. Raises
    QueryError for a step that is not indexed, has no rows, or is the first.
    """
    started = time.monotonic()
    if not 1 <= window <= MAX_WINDOW or limit < 1:
        raise QueryError(f"expected a window of 1 … {MAX_WINDOW} steps and a limit ≥ 1, found {window} and {limit}")
    subject = explained_step(reader, global_step, window, attempt)
    visible = reader.visible_under(visibility)
    step, before = read_rows(reader, subject, visible)
    segments, in_step = _segments(reader, subject, step, before)
    again = again_tokens(segments)
    features = _features(step, before, segments, in_step, again)
    measures = [measure for measure in FEATURES if visible == EVERYTHING or measure.name != "seen_share"]
    reasons = [reasons_of(measure, *features[measure.name]) for measure in measures]
    window_steps = before.table.column("global_step").to_numpy()
    means = [feature_of(measure, *features[measure.name], window_steps) for measure in measures]
    sources, source_g2, source_rank = source_mixture(segments, in_step, segments.column("global_step").to_numpy())
    decode = reader.tokenizer.decode if reader.info.tokenizer_file is not None else None
    return StepExplanation(
        run_id=reader.info.run_id,
        generation=reader.generation.number,
        attempt=subject.step.attempt,
        global_step=subject.step.global_step,
        canonical=subject.step.canonical,
        status=subject.step.status,
        loss=subject.step.loss,
        grad_norm=subject.step.grad_norm,
        spikes=subject.step.spikes,
        window_first_step=subject.window[0][1],
        window_last_step=subject.window[-1][1],
        window_num_steps=len(subject.window),
        num_sequences=step.table.num_rows,
        num_sequences_hidden=subject.step.num_sequences - step.table.num_rows,
        num_sequences_read=len(step.read),
        window_num_sequences=before.table.num_rows,
        window_num_sequences_read=len(before.read),
        features=_ordered(means),
        sources=sources,
        source_g2=source_g2,
        source_rank=source_rank,
        ngrams=overused_ngrams(step, before, limit, decode),
        documents=repeated_documents(segments, in_step, again, limit),
        rows=_ranked(step, reasons, limit),
        took_ms=1000 * (time.monotonic() - started),
    )


def _segments(
    reader: IndexReader, subject: ExplainedStep, step: Rows, before: Rows
) -> tuple[pa.Table, npt.NDArray[np.bool_]]:
    """Segments of window and step, and which are the step's; `row` counts the window's rows, then the step's."""
    of_window = read_segments(reader, subject.window, before.table, 0)
    own = [(subject.step.attempt, subject.step.global_step)]
    of_step = read_segments(reader, own, step.table, before.table.num_rows)
    joined = pa.concat_tables([of_window, of_step])
    return joined, np.arange(joined.num_rows) >= of_window.num_rows


def _features(
    step: Rows, before: Rows, segments: pa.Table, in_step: npt.NDArray[np.bool_], again: npt.NDArray[np.int64]
) -> dict[str, tuple[Floats, Floats]]:
    """Name → (of the step's rows, of the window's rows), f64, NaN for no value."""
    features = {
        measure.name: (step.column(measure.name), before.column(measure.name))
        for measure in FEATURES
        if measure.name in step.table.column_names
    }
    num_before, num_rows = before.table.num_rows, before.table.num_rows + step.table.num_rows
    surprisal = _surprisal(before, step)
    new_pairs = new_pair_shares((before.tokens, before.starts), (step.tokens, step.starts))
    twins = _twin_shares(before), _twin_shares(step)
    read = (("surprisal", surprisal), ("new_pair_share", new_pairs), ("twin_share", twins))
    for name, (of_window, of_step) in read:
        features[name] = (_spread(of_step, step), _spread(of_window, before))
    rows = segments.column("row").to_numpy()
    lengths = segments.column("length").to_numpy().astype(np.float64)
    total = np.bincount(rows, weights=lengths, minlength=num_rows)
    shares = np.bincount(rows, weights=again.astype(np.float64), minlength=num_rows) / np.maximum(1, total)
    again_shares = np.where(total > 0, shares, np.nan)
    for name, of_all in (
        ("again_share", again_shares),
        ("source_surprise", source_surprise(segments, in_step, num_rows)),
    ):
        features[name] = (of_all[num_before:], of_all[:num_before])
    return features


def _spread(values: Floats, rows: Rows) -> Floats:
    """Values of the rows that were read, at their places; NaN for the others."""
    spread = np.full(rows.table.num_rows, np.nan)
    spread[rows.read] = values
    return spread


def _twin_shares(rows: Rows) -> Floats:
    """Share of the tokens of each row that was read in TWIN-grams that another row of its step holds."""
    attempts, steps = (rows.table.column(name).to_numpy()[rows.read] for name in ("attempt", "global_step"))
    changes = np.flatnonzero((np.diff(attempts) != 0) | (np.diff(steps) != 0)) + 1
    shares = np.zeros(len(rows.read))
    for begin, end in itertools.pairwise([0, *changes.tolist(), len(rows.read)]):
        first, last = int(rows.starts[begin]), int(rows.starts[end])
        shares[begin:end] = shared_shares(rows.tokens[first:last], rows.starts[begin : end + 1] - first, TWIN)
    return shares


def _surprisal(before: Rows, step: Rows) -> tuple[Floats, Floats]:
    """Bits a token by the token frequencies of the window, of each row that was read; its own tokens left out of them."""
    size = 1 + int(max(before.tokens.max(initial=0), step.tokens.max(initial=0)))
    counts = np.bincount(before.tokens, minlength=size).astype(np.float64)
    total = counts.sum() + 0.5 * size

    def of_row(tokens: npt.NDArray[np.unsignedinteger], *, inside: bool) -> float:
        if not len(tokens):
            return float("nan")
        ids, own = np.unique(tokens, return_counts=True)
        left = counts[ids] - own if inside else counts[ids]
        rest = total - len(tokens) if inside else total
        return float(-(own * np.log2((left + 0.5) / rest)).sum() / len(tokens))

    of_window, of_step = (
        np.array([of_row(rows.tokens[a:b], inside=inside) for a, b in zip(rows.starts, rows.starts[1:], strict=False)])
        for rows, inside in ((before, True), (step, False))
    )
    return of_window, of_step


def _ordered(means: Sequence[Feature | None]) -> tuple[Feature, ...]:
    known = [feature for feature in means if feature is not None]
    return tuple(sorted(known, key=lambda feature: -abs(feature.deviations)))


def _ranked(step: Rows, reasons: Sequence[Sequence[Reason | None]], limit: int) -> tuple[UnusualRow, ...]:
    addresses, losses = step.table.column("address").to_pylist(), step.table.column("loss").to_pylist()
    rows = []
    for row, (address, loss) in enumerate(zip(addresses, losses, strict=True)):
        own = sorted((reason for column in reasons if (reason := column[row])), key=lambda reason: -reason.bits)
        rows.append(UnusualRow(address=address, score=score_of(own), loss=loss, reasons=tuple(own)))
    return tuple(sorted((row for row in rows if row.reasons), key=lambda row: -row.score)[:limit])
