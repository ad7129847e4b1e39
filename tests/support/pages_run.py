"""The run that the browser tests look at: real documents, hostile ones, a rollback, loss masks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.build.update import IndexOptions, update_index
from tests.conftest import byte_level_bpe, read_documents
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks import Segment
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

__all__ = ["HOSTILE", "PagesRun", "make_pages_run"]

LENGTH, SLOTS, RANKS = 128, 2, 2
HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href='javascript:window.pwned=1'>click</a>",
    "<details open ontoggle=window.pwned=1>",
    "<body onload=window.pwned=1>",
    "<input autofocus onfocus=window.pwned=1>",
    "<style>*{display:none}</style>",
    "<link rel=stylesheet href=/pwned.css>",
    "<base href=/pwned/>",
    "<meta http-equiv=refresh content='0;url=/pwned'>",
    "<form action=/pwned><button>go</button></form>",
    "<math><mtext></table><img src=x onerror=window.pwned=1>",
    "</div></div></span><h1>broken out</h1>",
    '" onmouseover=window.pwned=1 x="',
    "' onmouseover=window.pwned=1 x='",
    '" autofocus onfocus="window.pwned=1',
    "<!-- <script>window.pwned=1</script> -->",
    "<![CDATA[<script>window.pwned=1</script>]]>",
    "]]></script><script>window.pwned=1</script>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt; &amp; &quot; &#60;b&#62;",
    "{{constructor.constructor('window.pwned=1')()}}",
    "${window.pwned=1} `window.pwned=1` #{window.pwned=1}",
    "{tokens} {n:>9999999} {0.__class__} %s %n",
    "[click](javascript:window.pwned=1) **bold** _it_ # head",
    "![x](/pwned.png) <https://pwned.example> :material/home: :red[red]",
    "$$\\href{javascript:window.pwned=1}{x}$$ $\\frac{1}{2}$",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```html\n<b>\n```",
    '=HYPERLINK("http://pwned.example","x") +1 -1 @SUM(A1)',
    "'; DROP TABLE steps; -- ) OR 1=1",
    "../../../../etc/passwd %2e%2e%2f file:///etc/passwd",
    "bidi \u202eevil\u202c \u2066isolate\u2069 \u200fmark end",
    "invisible \u200bzero\u200b \ufeffbom\ufeff \U000e0041tag end",
    "NUL \x00 in \x00 the \x00 text \x07\x08\x1b[31mred\x1b[0m",
    "line\u2028separator\u2029paragraph \x85 next",
    "w" * 400,
    "\u0928\u093f\u0301" * 8 + " Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334a\u0334l\u034cg\u0348o",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \ufffd \uffff \u00ad",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PagesRun:
    """An indexed run, the texts of its documents by (source, id), and its last step."""

    run_dir: Path
    documents: dict[tuple[str, str], str]
    last_step: int


def make_pages_run(directory: Path) -> PagesRun:
    """Attempt 1 is rolled back from its end to two thirds of it; attempt 2 sees all documents once more."""
    documents = {**read_documents("devils-dictionary", 24), **read_documents("tatoeba-ja", 4)}
    documents |= {
        (f"hostile{HOSTILE[at % 3]}", f"{at}{text}"[:200]): f"begin {at}: {text} end {at}."
        for at, text in enumerate(HOSTILE)
    }
    tokenizer = byte_level_bpe(list(documents.values()), 1200)
    tokenizer.save(str(directory / "tokenizer.json"))
    rows, segments = _pack(documents, tokenizer.encode_batch(list(documents.values())))
    steps = [_step(rows, segments, at, number) for number, at in enumerate(range(0, len(rows), SLOTS * RANKS))]
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=1200, run_id="pages", tokenizer=directory / "tokenizer.json", config={}
    )
    resume_step = 2 * len(steps) // 3
    make_attempt(directory / "run", spec, steps, num_writers=RANKS)
    resume = ResumeToken(run_id="pages", attempt=1, global_step=resume_step)
    make_attempt(directory / "run", spec, steps, num_writers=RANKS, resume=resume)
    update_index(directory / "run", IndexOptions(shard_tokens=LENGTH * len(rows) // 2))
    return PagesRun(run_dir=directory / "run", documents=documents, last_step=resume_step + len(steps))


def _pack(documents: dict[tuple[str, str], str], encoded: list) -> tuple[np.ndarray, list[list[Segment]]]:  # type: ignore[type-arg]
    """Documents one after the other, cut into rows; the last row is filled up with token 0."""
    ids = [token for found in encoded for token in [*found.ids, 0]]
    num_rows = -(-len(ids) // LENGTH)
    num_rows += -num_rows % (SLOTS * RANKS)
    rows = np.array(ids + [0] * (num_rows * LENGTH - len(ids))).reshape(num_rows, LENGTH)
    segments: list[list[Segment]] = [[] for _ in range(num_rows)]
    at = 0
    for (source, document_id), found in zip(documents, encoded, strict=True):
        first, end = at, at + len(found.ids) + 1
        while at < end:
            length = min(end - at, LENGTH - at % LENGTH)
            segments[at // LENGTH].append(
                Segment(
                    start=at % LENGTH, length=length, source=source, document_id=document_id,
                    document_token_offset=at - first,
                )
            )  # fmt: skip
            at += length
    return rows, segments


def _step(rows: np.ndarray, segments: list[list[Segment]], at: int, number: int) -> MadeStep:
    """A step of one micro-batch a rank; the labels of the first eight positions count nothing."""
    places = {rank: slice(at + rank * SLOTS, at + (rank + 1) * SLOTS) for rank in range(RANKS)}
    labels = np.roll(rows, -1, axis=1).astype(np.int64)
    labels[:, :8] = -100
    return MadeStep(
        microbatches={rank: [rows[place]] for rank, place in places.items()},
        segments={rank: [segments[place]] for rank, place in places.items()},
        tensors={rank: [{"labels": labels[place]}] for rank, place in places.items()},
        metrics={"loss": 5.0 - number / 10, "lr": 1e-3, "grad_norm": 1.0 + number % 3},
    )
