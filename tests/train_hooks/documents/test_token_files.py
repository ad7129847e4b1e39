"""Resolvers of token files without their frameworks: against documents laid end to end by hand."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from train_hooks import Segment
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.documents.megatron_preprocessing import SourceText, name_documents, write_indexed
from train_hooks.documents.olmo import OlmoDocuments
from train_hooks.export_format.documents.sidecar import DocumentName, Sidecar, SidecarWriter
from train_hooks.export_format.errors import InputError

LENGTH, EOD = 8, 200
LENGTHS = [3, 0, 11, 1, 0, 20, 7, 2, 16, 5]  # tokens of each document, without its end


def documents() -> list[list[int]]:
    """Tokens of each document; no two tokens of the first 100 are the same."""
    numbers = iter(range(100))
    return [[*(next(numbers) for _ in range(length)), EOD] if length else [] for length in LENGTHS]


def text(ordinal: int) -> SourceText:
    return SourceText(source="s", document_id=f"d{ordinal}", file="f.jsonl", line=ordinal + 1, text=str(ordinal))


class Indexed:
    """What IndexedDataset has, read back from the files by hand."""

    def __init__(self, prefix: Path) -> None:
        self.path_prefix = str(prefix)
        raw = Path(f"{prefix}.idx").read_bytes()
        num_sequences, num_documents = np.frombuffer(raw, "<u8", 2, 18).tolist()
        self.sequence_lengths = np.frombuffer(raw, "<i4", num_sequences, 34)
        self.pointers = np.frombuffer(raw, "<i8", num_sequences, 34 + 4 * num_sequences)
        self.document_indices = np.frombuffer(raw, "<i8", num_documents, 34 + 12 * num_sequences)
        self.tokens = np.fromfile(f"{prefix}.bin", "<u2")

    def get(self, sequence: int, offset: int, length: int) -> npt.NDArray[np.uint16]:
        first = int(self.pointers[sequence]) // 2 + offset
        return self.tokens[first : first + length]


def megatron_dataset(prefix: Path, num_epochs: int = 3) -> tuple[Any, list[list[tuple[int, int, int]]]]:
    """A GPTDataset's attributes, and for each sample its tokens as (document, offset, token), one by one."""
    indexed, rng = Indexed(prefix), np.random.default_rng(3)
    order = rng.permutation(np.repeat(np.arange(len(indexed.sequence_lengths)), num_epochs))
    filled = [ordinal for ordinal, length in enumerate(LENGTHS) if length]
    stream = [
        (filled[sequence], offset, token, place)
        for place, sequence in enumerate(order.tolist())
        for offset, token in enumerate(documents()[filled[sequence]])
    ]
    num_samples = (len(stream) - 1) // LENGTH
    starts = [(stream[LENGTH * sample][3], stream[LENGTH * sample][1]) for sample in range(num_samples + 1)]
    shuffle = rng.permutation(num_samples)
    dataset = SimpleNamespace(
        dataset=indexed, document_index=order.astype(np.int32), sample_index=np.array(starts, np.int32),
        shuffle_index=shuffle, config=SimpleNamespace(add_extra_token_to_sequence=True), _pad_token_id=-1,
    )  # fmt: skip
    samples = [[item[:3] for item in stream[LENGTH * place : LENGTH * (place + 1)]] for place in shuffle.tolist()]
    return dataset, samples


def spread(segments: list[Segment]) -> list[tuple[str, int]]:
    """(document_id, offset) of each token."""
    return [
        (segment.document_id, segment.document_token_offset + number)
        for segment in segments
        for number in range(segment.length)
    ]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    written = write_indexed(
        tmp_path / "data", map(text, range(len(LENGTHS))), lambda number: documents()[int(number)][:-1],
        vocab_size=EOD + 1, end_of_document=EOD,
    )  # fmt: skip
    assert written == len(LENGTHS)
    return tmp_path / "data"


def test_megatron(prefix: Path) -> None:
    dataset, samples = megatron_dataset(prefix)
    resolver = MegatronDocuments(dataset)
    for index, sample in enumerate(samples):
        tokens = np.array([token for _, _, token in sample])
        segments = list(resolver.segments(index, tokens))
        assert spread(segments) == [(f"d{ordinal}", offset) for ordinal, offset, _ in sample]
        assert [segment.start for segment in segments] == [
            sum(segment.length for segment in segments[:number]) for number in range(len(segments))
        ]
        with pytest.raises(InputError, match=r"from \d+ on, found others"):
            resolver.segments(index, np.roll(tokens, 1))
    assert len(samples) > 20


def test_megatron_parts_of_samples(prefix: Path) -> None:
    """Every part of every sample, token by token."""
    dataset, samples = megatron_dataset(prefix)
    resolver = MegatronDocuments(dataset)
    for index, sample in enumerate(samples):
        for begin in range(LENGTH):
            for end in range(begin + 1, LENGTH + 1):
                tokens = np.array([token for _, _, token in sample[begin:end]])
                segments = list(resolver.segments_of_part(index, begin, tokens))
                assert spread(segments) == [(f"d{ordinal}", offset) for ordinal, offset, _ in sample[begin:end]]
                assert segments[0].start == 0
        with pytest.raises(InputError, match=r"from \d+ on, found others"):
            resolver.segments_of_part(index, 1, np.array([token for _, _, token in sample[: LENGTH - 1]]))


def test_megatron_padding_is_fed_as_zero(prefix: Path) -> None:
    dataset, samples = megatron_dataset(prefix)
    dataset._pad_token_id = EOD
    tokens = np.array([0 if token == EOD else token for _, _, token in samples[0]])
    assert MegatronDocuments(dataset).segments(0, tokens)


def test_tokens_beyond_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"f\.jsonl, line 1: expected tokens in \[0, 5\), found 2 to 9"):
        write_indexed(tmp_path / "data", [text(0)], lambda _: [2, 9], vocab_size=5)


def test_names_beyond_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_hooks.export_format.documents.sidecar.BATCH_ROWS", 4)
    index = tmp_path / "data.idx"
    index.write_bytes(b"index")
    writer = SidecarWriter(tmp_path / "data")
    for number in range(11):
        name = DocumentName(source="s", document_id=f"d{number}", file="f", line=number, text_sha256=bytes(32))
        writer.add(name)
    writer.finish(index, 11)
    sidecar = Sidecar(tmp_path / "data", index)
    assert [sidecar.name(number) for number in (10, 0, 3, 4, 7, 8)] == [
        ("s", f"d{number}") for number in (10, 0, 3, 4, 7, 8)
    ]


class NumpyFSLDataset:
    """What OLMo-core's has."""

    def __init__(self, path: Path, num_tokens: int) -> None:
        self.paths, self.dtype, self.offsets = (str(path),), np.uint16, ((0, num_tokens // LENGTH),)


def test_olmo(tmp_path: Path) -> None:
    tokens = [token for document in documents() for token in document]
    owners = [
        (f"d{ordinal}", offset) for ordinal, document in enumerate(documents()) for offset in range(len(document))
    ]
    np.array(tokens, np.uint16).tofile(tmp_path / "part.npy")
    ends = np.cumsum([len(document) for document in documents()]).tolist()
    with gzip.open(tmp_path / "part.csv.gz", "wt") as file:
        for ordinal, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            file.write(f"{start},{end},d{ordinal},s3://bucket/wiki/0.json.gz,{ordinal + 1}\n")
    resolver = OlmoDocuments(NumpyFSLDataset(tmp_path / "part.npy", len(tokens)), corpus="s3://bucket")
    for index in range(len(tokens) // LENGTH):
        here = slice(LENGTH * index, LENGTH * (index + 1))
        segments = list(resolver.segments(index, np.array(tokens[here])))
        found = [(name.split("@")[0], offset) for name, offset in spread(segments)]
        assert found == owners[here]
        assert {segment.source for segment in segments} == {"wiki"}
    assert segments[-1].document_id == "d9@wiki/0.json.gz#10"


def test_a_preprocessing_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """A token beyond the vocabulary, a tokenizer that fails, texts that are too few: no half of a file stays."""
    texts = [
        SourceText(source="s", document_id=str(number), file="a.jsonl", line=number, text="x" * number)
        for number in range(1, 5)
    ]
    write_indexed(tmp_path / "a", texts, lambda text: [len(text)], vocab_size=9, end_of_document=8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["a.bin", "a.documents.arrow", "a.idx"]
    with pytest.raises(InputError, match="found 3 to 8"):
        write_indexed(tmp_path / "a", texts[2:], lambda text: [len(text)], vocab_size=8, end_of_document=8)
    with pytest.raises(ZeroDivisionError):
        write_indexed(tmp_path / "a", texts, lambda text: [3 // (4 - len(text))], vocab_size=9)
    with pytest.raises(InputError, match="the names of 4 documents, found 3"):
        name_documents(tmp_path / "a", texts[1:])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
