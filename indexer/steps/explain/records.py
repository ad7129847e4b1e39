"""What `explain_step` returns. `to_json` gives the same as plain data for the command line, the API and the pages."""

from dataclasses import dataclass
from typing import Any

from indexer.answers.plain_data import finite_data
from indexer.steps.steps import Spike

__all__ = ["Feature", "OverusedNgram", "Reason", "RepeatedDocument", "SourceShare", "StepExplanation", "UnusualRow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """A number of the step's sequences, in the mean, beside the means of the steps of the window.

    low, high: 5th and 95th percentile of the window's steps. deviations: robust standard deviations from their median.
    """

    name: str
    value: float
    median: float
    low: float
    high: float
    deviations: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShare:
    """Share of a source in the tokens of the step and of the window, and its segments in both."""

    source: str
    share: float
    window_share: float
    num_segments: int
    window_num_segments: int


@dataclass(frozen=True, kw_only=True, slots=True)
class OverusedNgram:
    """A token n-gram that the step holds more often than the window would let expect; G² is the log-likelihood ratio.

    count of `count` in the step, in num_sequences of its rows that were read; window_count in what was read of the window;
    expected: what the step would hold at the window's and its own rate together.
    """

    token_ids: tuple[int, ...]
    text: str | None
    count: int
    expected: float
    window_count: int
    num_sequences: int
    g2: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedDocument:
    """A document of which the step saw tokens that it, or the window, had seen as well.

    num_tokens of the step are of it, in num_sequences rows; num_tokens_again of these are repeats within the step or of the
    window. window_num_segments: its segments in the window.
    """

    source: str
    document_id: str
    num_sequences: int
    num_tokens: int
    num_tokens_again: int
    window_num_segments: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why a row is unusual: a feature's value, the window's median, how surprising that is (bits), and all that in words."""

    feature: str
    value: float
    median: float
    bits: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusualRow:
    """A sequence of the step with the reasons to look at it, the strongest first; score: see `scoring`."""

    address: str
    score: float
    loss: float | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepExplanation:
    """What distinguishes the sequences of a step from those of the steps before it on its lineage.

    num_sequences_hidden: rows of the step that were left out, because something of them may not be seen; so were such rows
    of the window. num_sequences_read, window_num_sequences_read: rows whose tokens were read, evenly taken where all would
    be too many. source_g2: G² of the sources of the step's segments against the window's; source_rank: share of the
    window's steps that differ from the others at least as much. features: the most different first. rows: the most unusual
    first.
    """

    run_id: str
    generation: int
    attempt: int
    global_step: int
    canonical: bool
    status: str
    loss: float | None
    grad_norm: float | None
    spikes: tuple[Spike, ...]
    window_first_step: int
    window_last_step: int
    window_num_steps: int
    num_sequences: int
    num_sequences_hidden: int
    num_sequences_read: int
    window_num_sequences: int
    window_num_sequences_read: int
    features: tuple[Feature, ...]
    sources: tuple[SourceShare, ...]
    source_g2: float
    source_rank: float
    ngrams: tuple[OverusedNgram, ...]
    documents: tuple[RepeatedDocument, ...]
    rows: tuple[UnusualRow, ...]
    took_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that JSON lacks are strings."""
        plain: dict[str, Any] = finite_data(self)
        return plain
