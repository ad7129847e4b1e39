"""Documents and sources of a step, beside those of the window: what it sees again, and how its mixture differs."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.steps.explain.ngrams import g2
from indexer.steps.explain.records import RepeatedDocument, SourceShare

__all__ = ["again_tokens", "repeated_documents", "source_mixture", "source_surprise"]


def again_tokens(segments: pa.Table) -> npt.NDArray[np.int64]:
    """Of each segment, how many of its tokens the same document shows in another of the segments too, i64.

    `segments` has source, document_id, document_token_offset, length. A segment without a document, or at an offset that the
    export does not know (-1), shows nothing again.
    """
    documents = _codes(segments, ("source", "document_id"))
    begins = segments.column("document_token_offset").to_numpy().astype(np.int64)
    ends = begins + segments.column("length").to_numpy()
    known = pc.not_equal(segments.column("document_id"), "").to_numpy()
    order = np.lexsort((begins, documents))
    order = order[begins[order] >= 0]
    again = np.zeros(len(documents), np.int64)
    for group in np.split(order, np.flatnonzero(np.diff(documents[order])) + 1):
        if len(group) > 1 and known[group[0]]:
            edges = np.unique(np.concatenate([begins[group], ends[group]]))
            deltas = np.zeros(len(edges), np.int64)
            np.add.at(deltas, np.searchsorted(edges, begins[group]), 1)
            np.add.at(deltas, np.searchsorted(edges, ends[group]), -1)
            twice = np.append(0, np.cumsum(np.where(np.cumsum(deltas)[:-1] > 1, np.diff(edges), 0)))
            again[group] = twice[np.searchsorted(edges, ends[group])] - twice[np.searchsorted(edges, begins[group])]
    return again


def repeated_documents(
    segments: pa.Table, in_step: npt.NDArray[np.bool_], again: npt.NDArray[np.int64], limit: int
) -> tuple[RepeatedDocument, ...]:
    """The documents of the step with the most tokens seen again; `in_step` says which segments are the step's."""
    documents = _codes(segments, ("source", "document_id"))
    total = np.bincount(documents[in_step], weights=again[in_step], minlength=int(documents.max(initial=-1)) + 1)
    lengths = segments.column("length").to_numpy()
    rows = segments.column("row").to_numpy()
    found = []
    for document in np.argsort(-total, kind="stable")[:limit].tolist():
        if total[document] > 0:
            of_document = documents == document
            of_step = np.flatnonzero(of_document & in_step)
            found.append(
                RepeatedDocument(
                    source=segments.column("source")[int(of_step[0])].as_py(),
                    document_id=segments.column("document_id")[int(of_step[0])].as_py(),
                    num_sequences=len(np.unique(rows[of_step])),
                    num_tokens=int(lengths[of_step].sum()),
                    num_tokens_again=int(total[document]),
                    window_num_segments=int((of_document & ~in_step).sum()),
                )
            )
    return tuple(found)


def source_mixture(
    segments: pa.Table, in_step: npt.NDArray[np.bool_], steps: npt.NDArray[np.int64]
) -> tuple[tuple[SourceShare, ...], float, float]:
    """(shares by source, G² of the step's segments against the window's, share of the window's steps with a G² as large).

    `steps`: a number for the step of each segment. Sources with the largest difference first.
    """
    if not segments.num_rows or not in_step.any() or in_step.all():
        return (), 0.0, 1.0
    codes = _codes(segments, ("source",))
    names = segments.column("source")
    lengths = segments.column("length").to_numpy().astype(np.float64)
    num = int(codes.max()) + 1
    numbers, places = np.unique(steps, return_inverse=True)
    table = np.zeros((len(numbers), num), np.int64)
    np.add.at(table, (places, codes), 1)
    own = int(places[np.flatnonzero(in_step)[0]])
    window = np.delete(table, own, axis=0)
    strength = _mixture_g2(table[own], window.sum(axis=0))
    others = [_mixture_g2(row, window.sum(axis=0) - row) for row in window]
    here, there = (np.bincount(codes[mask], weights=lengths[mask], minlength=num) for mask in (in_step, ~in_step))
    here, there = here / max(1.0, here.sum()), there / max(1.0, there.sum())
    first_of = {code: index for index, code in reversed(list(enumerate(codes.tolist())))}
    shares = [
        SourceShare(
            source=names[first_of[code]].as_py(),
            share=float(here[code]),
            window_share=float(there[code]),
            num_segments=int(table[own, code]),
            window_num_segments=int(window[:, code].sum()),
        )
        for code in np.argsort(-np.abs(here - there), kind="stable").tolist()
    ]
    return tuple(shares), strength, float(np.mean(np.array(others) >= strength))


def source_surprise(segments: pa.Table, in_step: npt.NDArray[np.bool_], num_rows: int) -> npt.NDArray[np.float64]:
    """Bits a token of each row's sources, by the window's mixture, f64 [num_rows]; NaN for rows without segments."""
    if not segments.num_rows:
        return np.full(num_rows, np.nan)
    codes = _codes(segments, ("source",))
    lengths = segments.column("length").to_numpy().astype(np.float64)
    window = np.bincount(codes[~in_step], weights=lengths[~in_step], minlength=int(codes.max()) + 1) + 1.0
    bits = -np.log2(window / window.sum())
    rows = segments.column("row").to_numpy()
    total = np.bincount(rows, weights=lengths, minlength=num_rows)
    weighted = np.bincount(rows, weights=lengths * bits[codes], minlength=num_rows)
    return np.where(total > 0, weighted / np.maximum(1, total), np.nan)


def _mixture_g2(here: npt.NDArray[np.int64], there: npt.NDArray[np.int64]) -> float:
    return float(g2(here, int(here.sum()), there, int(there.sum()))[0].sum()) if there.sum() else 0.0


def _codes(segments: pa.Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for each distinct value of some columns of text, i64 by row."""
    joined = pc.binary_join_element_wise(*(segments.column(name) for name in names), "\0")
    indices = (
        pa.chunked_array(joined).combine_chunks()
        if not isinstance(joined, pa.ChunkedArray)
        else joined.combine_chunks()
    )
    return np.asarray(indices.dictionary_encode().indices.to_numpy(zero_copy_only=False), np.int64)
