"""Recomputed Megatron exports against what the real package's blend gave (files/make_files.py)."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import update_index
from indexer.documents.history import document_history
from indexer.importers.megatron.indexed import open_indexed
from indexer.importers.megatron.reconstruct import MegatronSchedule, reconstruct_megatron
from indexer.reader import IndexReader
from tests.support.export_maker import all_rows
from tests.ui.test_cli import run_here
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.origin import OriginKind, origin_of
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.verify.run import verify

FILES = Path(__file__).parent / "files"
BLEND = next(FILES.glob("*-BlendedDataset-train-description.txt"))
LENGTH, VOCABULARY = 32, 600
SCHEDULE = MegatronSchedule(global_batch_size=8, micro_batch_size=2, num_ranks=2)


def documents_of(name: str) -> list[list[int]]:
    """Every document of a tokenized file, read by other means: its arrays, as the format says, from the beginning."""
    raw = (FILES / f"{name}.idx").read_bytes()
    code = raw[17]
    num_sequences, num_documents = (int(np.frombuffer(raw, "<u8", 1, at)[0]) for at in (18, 26))
    lengths = np.frombuffer(raw, "<i4", num_sequences, 34).tolist()
    first = np.frombuffer(raw, "<i8", num_documents, 34 + 12 * num_sequences).tolist()
    tokens = np.fromfile(FILES / f"{name}.bin", {8: "<u2", 4: "<i4"}[code]).tolist()
    found, at = [], 0
    for begin, end in itertools.pairwise(first):
        size = sum(lengths[begin:end])
        found.append(tokens[at : at + size])
        at += size
    assert at == len(tokens)
    return found


def test_it_is_what_the_real_blend_gave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--global-batch-size", 8, "--micro-batch-size", 2, "--ranks", 2, "--vocab-size", VOCABULARY]
    code, out, err = run_here(
        capsys, monkeypatch, "import", "megatron", BLEND, tmp_path / "run", "--data-dir", FILES, *arguments
    )
    assert code == 0 and "12 steps, 96 sequences" in out and "recomputing steps" in err
    samples = np.load(FILES / "samples.npy")
    rows = all_rows(tmp_path / "run")
    assert len(rows) == len(samples) == 96
    place = 0
    for step in range(1, 13):  # as the sampler deals: micro-batches one behind the other, ranks inside of them
        for microbatch in range(2):
            for rank in range(2):
                for slot in range(2):
                    row = next(
                        row
                        for row in rows
                        if (row.address.global_step, row.address.microbatch, row.address.dp_rank, row.address.slot)
                        == (step, microbatch, rank, slot)
                    )
                    assert row.sample_index == place
                    assert np.array_equal(row.tokens, samples[place, 0])
                    assert [tensor.name for tensor in row.tensors] == ["labels"]
                    assert np.array_equal(decode_tensor(row.tensors[0], row.tokens, row.segments), samples[place, 1])
                    place += 1
    assert verify(tmp_path / "run").findings == ()
    assert origin_of(RunReader(tmp_path / "run").info).kind is OriginKind.RECOMPUTED


def test_every_token_names_its_document(tmp_path: Path) -> None:
    reconstruct_megatron(BLEND, tmp_path / "run", SCHEDULE, vocab_size=VOCABULARY, data_dir=FILES)
    documents = {name: documents_of(name) for name in ("first_text_document", "second_text_document")}
    assert [] in documents["first_text_document"]
    num_tokens = 0
    for row in all_rows(tmp_path / "run"):
        assert sum(segment.length for segment in row.segments) == LENGTH
        for segment in row.segments:
            document = documents[segment.source][int(segment.document_id)]
            part = document[segment.document_token_offset :][: segment.length]
            assert row.tokens[segment.start : segment.start + segment.length].tolist() == part
            num_tokens += segment.length
    assert num_tokens == 96 * LENGTH
    update_index(tmp_path / "run")
    history = document_history(IndexReader.open(tmp_path / "run"), "second_text_document", "3")
    assert history.num_tokens_distinct <= len(documents["second_text_document"][3])


def test_one_data_set_without_a_blend(tmp_path: Path) -> None:
    description = next(FILES.glob("*-GPTDataset-train-description.txt"))
    schedule = MegatronSchedule(global_batch_size=4, last_step=3)
    done = reconstruct_megatron(description, tmp_path / "run", schedule, vocab_size=VOCABULARY, data_dir=FILES)
    assert (done.num_steps, done.num_rows, done.num_tokens) == (3, 12, 12 * LENGTH)
    rows = {tuple(row.tokens.tolist()) for row in all_rows(tmp_path / "run")}
    real = {tuple(tokens) for tokens in np.load(FILES / "samples.npy")[:, 0].tolist()}
    assert rows <= real  # the first samples of a data set are those that the blend takes first


def other_data(directory: Path) -> None:
    for ending in (".idx", ".bin"):
        shutil.copy(directory / f"first_text_document{ending}", directory / f"second_text_document{ending}")


def edit(directory: Path, pattern: str, change: Callable[[bytes], bytes]) -> None:
    path = next(directory.glob(pattern))
    path.write_bytes(change(path.read_bytes()))


def array(pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Every array of the name in the cache becomes `change` of itself."""

    def spoil(directory: Path) -> None:
        for path in directory.glob(pattern):
            np.save(path, change(np.load(path)))

    return spoil


def first_is(value: object) -> Callable[[np.ndarray], np.ndarray]:
    return lambda found: np.concatenate([np.array([value], np.int64), found[1:].astype(np.int64)])


def other_length(directory: Path) -> None:
    for path in directory.glob("*-description.txt"):
        path.write_text(path.read_text().replace('"sequence_length": 32', '"sequence_length": 16'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_data, "does not fit second_text_document.idx, .*; is it of other data"),
        (other_length, "has 33 tokens, not 17; is it of other data"),
        (lambda directory: (directory / "first_text_document.bin").unlink(), "expected first_text_document.idx and"),
        (lambda directory: edit(directory, "first*.idx", lambda data: data[:-8]), "expected version 1, whole"),
        (lambda directory: edit(directory, "first*.idx", lambda data: b"x" + data), "expected an index of Megatron's"),
        (lambda directory: edit(directory, "first*.bin", lambda data: data[:-8]), "bytes, found"),
        (
            lambda directory: edit(directory, "*dataset_sample_index.npy", lambda data: data[:-8]),
            "expected an index of",
        ),
        (array("*-dataset_index.npy", first_is(7)), "names sample .* of data set 7, of 2"),
        (array("*-dataset_index.npy", first_is(-1)), "names sample .* of data set -1, of 2"),
        (array("*-dataset_sample_index.npy", first_is(7000)), "expected a sample of .*, found 7000"),
        (array("*-dataset_sample_index.npy", first_is(-1)), "expected a sample of .*, found -1"),
        (
            array("*-dataset_index.npy", lambda found: found[:50]),
            "expected 97 samples, as its description says, found 50",
        ),
        (array("*GPT*-shuffle_index.npy", lambda found: found * 0 - 1), "is it of other data"),
        (array("*GPT*-sample_index.npy", lambda found: found[:4]), "is it of other data"),
        (array("*GPT*-sample_index.npy", first_is([-1, -5])), "is it of other data"),
        (array("*GPT*-sample_index.npy", lambda found: found + 1000), "is it of other data"),
        (array("*GPT*-document_index.npy", first_is(-3)), "names sequence -3 of 34; is it of other data"),
        (lambda directory: edit(directory, "*Blended*description.txt", lambda _: b"[" * 100_000), "expected a …-desc"),
        (
            lambda directory: edit(directory, "*Blended*description.txt", lambda data: data.replace(b"{", b"[3]", 2)),
            "expected a …-desc",
        ),
        (
            lambda directory: edit(
                directory, "*Blended*description.txt", lambda _: b'{"class": "BlendedDataset", "datasets": [3]}'
            ),
            "is not beside it",
        ),
        (
            lambda directory: next(directory.glob("*-shuffle_index.npy")).unlink(),
            "shuffle_index.npy: expected an index",
        ),
        (lambda directory: next(directory.glob("*GPTDataset*description.txt")).unlink(), "is not beside it"),
        (lambda directory: edit(directory, "*Blended*description.txt", lambda _: b"{"), "expected a …-description.txt"),
        (
            lambda directory: edit(
                directory, "*Blended*description.txt", lambda _: json.dumps({"class": "BERT"}).encode()
            ),
            "expected the description of a GPTDataset or BlendedDataset, found 'BERT'",
        ),
    ],
)
def test_caches_that_do_not_fit_are_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(FILES, data)
    spoil(data)
    with pytest.raises(InputError, match=message):
        reconstruct_megatron(data / BLEND.name, tmp_path / "run", SCHEDULE, vocab_size=VOCABULARY, data_dir=data)
    assert not (tmp_path / "run").exists()


def test_schedules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 8 for 3 times 1"):
        MegatronSchedule(global_batch_size=8, micro_batch_size=3)
    for schedule, message in (
        (MegatronSchedule(global_batch_size=8, last_step=13), "expected 1 to 12"),
        (MegatronSchedule(global_batch_size=128), "expected 1 to 0"),
    ):
        with pytest.raises(InputError, match=message):
            reconstruct_megatron(BLEND, tmp_path / "run", schedule, vocab_size=VOCABULARY, data_dir=FILES)
    with pytest.raises(InputError, match="expected token ids below 100"):
        reconstruct_megatron(BLEND, tmp_path / "run", SCHEDULE, vocab_size=100, data_dir=FILES)
    with pytest.raises(InputError, match="give their directory with --data-dir"):
        reconstruct_megatron(BLEND, tmp_path / "run", SCHEDULE, vocab_size=VOCABULARY)
    assert not (tmp_path / "run").exists()


def test_a_sequence_knows_its_document() -> None:
    indexed = open_indexed(FILES / "first_text_document")
    lengths = [len(document) for document in documents_of("first_text_document")]
    for sequence in range(len(indexed.lengths)):
        ordinal, before = indexed.document(sequence)
        assert 0 <= before < max(1, lengths[ordinal]) and lengths[ordinal] > 0
