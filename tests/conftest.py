"""Fixtures that several folders share: a small run on real text, made once a session."""

import contextlib
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from indexer.build.update import IndexOptions, update_index
from tests.support.export_maker import MadeStep, make_attempt
from tests.support.second_reader import assert_readers_agree
from train_hooks import Segment
from train_hooks.export_format.writing.attempts import RunSpec

with contextlib.suppress(ModuleNotFoundError):  # the environments of the adapters have no hypothesis
    from hypothesis import settings

    # An example may take long on a busy machine, which says nothing of the code: `timeout` of pytest is the limit.
    settings.register_profile("kiseki", deadline=None)
    settings.load_profile("kiseki")

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpus"
LENGTH, WRITERS, SLOTS = 64, 2, 2
PEAK_KIB = "int(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
"""For programs that tests start: the most memory of a process. `getrusage` would count what pytest held when it began."""
SECOND_READER = {"adapters", "examples", "faults", "train_hooks", "zoo"}
"""Folders whose tests leave exports to the second reader, where these are small enough to be read whole."""
MAX_RUNS, MAX_BYTES = 10, 4 << 20


@pytest.fixture(autouse=True)
def second_reader(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every run that a test leaves below its `tmp_path` is read by both readers, which must agree.

    Damage that a test has done is no matter: both refuse the run then, or `verify` names it. A test that writes what
    neither of them can tell is marked `damaged_export`.
    """
    yield
    below = request.path.relative_to(Path(__file__).parent).parts[0]
    directory = request.node.funcargs.get("tmp_path") if below in SECOND_READER else None
    if directory is None or request.node.get_closest_marker("damaged_export"):
        return
    found = sorted(Path(directory).glob("**/export/run.json"))
    for path in found[:: 1 + len(found) // MAX_RUNS]:
        if sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()) <= MAX_BYTES:
            assert_readers_agree(path.parents[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRun:
    """An indexed run on real documents, two writers, and the documents' texts by (source, id)."""

    run_dir: Path
    documents: dict[tuple[str, str], str]
    num_steps: int


def read_documents(source: str, limit: int) -> dict[tuple[str, str], str]:
    """The first documents of a source of the example corpus."""
    with gzip.open(CORPUS / f"{source}.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
    return {(line["source"], line["id"]): line["text"] for line in lines}


def byte_level_bpe(texts: list[str], vocab_size: int) -> Tokenizer:
    """A real tokenizer of the kind that language models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pack(documents: dict[tuple[str, str], str], tokenizer: Tokenizer) -> tuple[np.ndarray, list[list[Segment]]]:
    """Concat and cut: rows [n, LENGTH] and the segments of each."""
    tokens: list[int] = []
    owners: list[tuple[str, str, int]] = []
    for (source, document_id), text in documents.items():
        ids = [*tokenizer.encode(text).ids, 0]
        tokens += ids
        owners += [(source, document_id, offset) for offset in range(len(ids))]
    num_rows = len(tokens) // LENGTH
    rows = np.array(tokens[: num_rows * LENGTH]).reshape(num_rows, LENGTH)
    segments: list[list[Segment]] = []
    for row in range(num_rows):
        found: list[Segment] = []
        for position in range(LENGTH):
            source, document_id, offset = owners[row * LENGTH + position]
            if found and (found[-1].source, found[-1].document_id) == (source, document_id):
                last = found.pop()
                start, length, offset = last.start, last.length + 1, last.document_token_offset
            else:
                start, length = position, 1
            found.append(
                Segment(
                    start=start, length=length, source=source, document_id=document_id, document_token_offset=offset
                )
            )
        segments.append(found)
    return rows, segments


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    """Devil's dictionary and Japanese sentences, seen twice, indexed in several shards."""
    documents = {**read_documents("devils-dictionary", 20), **read_documents("tatoeba-ja", 4)}
    directory = tmp_path_factory.mktemp("text")
    tokenizer = byte_level_bpe(list(documents.values()), 2000)
    tokenizer.save(str(directory / "tokenizer.json"))
    rows, segments = pack(documents, tokenizer)
    per_step = WRITERS * SLOTS
    num_steps = len(rows) // per_step
    steps = []
    for step in [*range(num_steps), *range(num_steps)]:
        slots = {
            rank: slice(step * per_step + rank * SLOTS, step * per_step + (rank + 1) * SLOTS) for rank in range(WRITERS)
        }
        steps.append(
            MadeStep(
                microbatches={rank: [rows[place]] for rank, place in slots.items()},
                segments={rank: [segments[place]] for rank, place in slots.items()},
                metrics={"loss": 5.0 - step / 100, "lr": 1e-3},
            )
        )
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=2000, run_id="text", tokenizer=directory / "tokenizer.json", config={"a": 1}
    )
    make_attempt(directory / "run", spec, steps, num_writers=WRITERS)
    update_index(directory / "run", IndexOptions(shard_tokens=LENGTH * len(rows) // 2))
    return TextRun(run_dir=directory / "run", documents=documents, num_steps=len(steps))


def pytest_configure(config: pytest.Config) -> None:
    """Marks of the fixtures above."""
    config.addinivalue_line("markers", "damaged_export: leaves an export that only one of two readers refuses")
