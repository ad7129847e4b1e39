"""Recomputed OLMo-core exports against what the real package's data loader gave (files/make_files.py)."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.build.update import update_index
from indexer.documents.history import document_history
from indexer.importers.olmo_core.reconstruct import reconstruct_olmo_core
from indexer.reader import IndexReader
from tests.support.export_maker import all_rows
from tests.ui.test_cli import run_here
from train_hooks.export_format.boundaries import UNKNOWN_IDENTITY
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.origin import OriginKind, origin_of
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.verify.run import verify

FILES = Path(__file__).parent / "files"
ORDER = [FILES / f"global_indices_dataset_size106_epoch{epoch}_seed34521_v1.npy" for epoch in (1, 2)]
LENGTH, BATCH = 32, 8


def test_it_is_what_the_real_loader_gave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["import", "olmo-core", FILES / "config.json", tmp_path / "run", "--data-dir", FILES, "--ranks", "2"]
    arguments += ["--corpus", "/data"]
    for path in reversed(ORDER):  # names say the order
        arguments += ["--indices", path]
    code, out, err = run_here(capsys, monkeypatch, *arguments)
    assert code == 0 and "26 steps, 208 sequences, 6,656 tokens, recomputed" in out and "recomputing steps" in err
    consumed = json.loads((FILES / "consumed.json").read_text())
    files = [np.fromfile(FILES / f"part-{number}-00000.npy", np.uint16) for number in range(3)]
    sequences = [file[at : at + LENGTH] for file in files for at in range(0, len(file) - LENGTH + 1, LENGTH)]
    rows = all_rows(tmp_path / "run")
    places = [(row.address.global_step, row.address.dp_rank, row.address.slot) for row in rows]
    assert places == sorted(tuple(item[:3]) for item in consumed) and len(rows) == 208
    index_of = {tuple(item[:3]): item[3] for item in consumed}
    for row, place in zip(rows, places, strict=True):
        assert np.array_equal(row.tokens, sequences[index_of[place]])
    for _, _, _, index, first, last in consumed:
        assert (sequences[index][0], sequences[index][-1]) == (first, last)
    assert sorted(row.sample_index for row in rows if row.sample_index is not None) == list(range(208))
    assert verify(tmp_path / "run").findings == ()
    assert origin_of(RunReader(tmp_path / "run").info).kind is OriginKind.RECOMPUTED
    code, out, _ = run_here(capsys, monkeypatch, "export", "status", tmp_path / "run")
    assert code == 0 and "recomputed from OLMo-core's global_indices and configuration, not observed by the hook" in out


def test_every_token_names_its_document(tmp_path: Path) -> None:
    reconstruct_olmo_core(FILES / "config.json", tmp_path / "run", ORDER[:1], data_dir=FILES, corpus="/data")
    documents: dict[str, np.ndarray] = {}
    for number in range(2):
        tokens = np.fromfile(FILES / f"part-{number}-00000.npy", np.uint16)
        for line in gzip.decompress((FILES / f"part-{number}-00000.csv.gz").read_bytes()).decode().split():
            start, end, name, src, number_of_line = line.split(",")
            documents[f"{name}@{src.removeprefix('/data/')}#{number_of_line}"] = tokens[int(start) : int(end)]
    named = unknown = 0
    for row in all_rows(tmp_path / "run"):
        assert sum(segment.length for segment in row.segments) == LENGTH
        for segment in row.segments:
            if segment.source == UNKNOWN_IDENTITY:
                unknown += 1
                continue
            named += 1
            part = documents[segment.document_id][segment.document_token_offset :][: segment.length]
            assert np.array_equal(row.tokens[segment.start : segment.start + segment.length], part)
            assert segment.source == "src"
    assert named > 100 and unknown > 10
    update_index(tmp_path / "run")
    history = document_history(IndexReader.open(tmp_path / "run"), "src", "doc-0-3@src-0.jsonl.gz#4")
    assert history.num_tokens_distinct == len(documents["doc-0-3@src-0.jsonl.gz#4"])


def test_without_documents_beside_the_tokens(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in FILES.glob("part-*.npy"):
        shutil.copy(path, data)
    done = reconstruct_olmo_core(FILES / "config.json", tmp_path / "run", ORDER[:1], data_dir=data, last_step=5)
    assert (done.num_steps, done.num_rows, done.num_without_documents) == (5, 40, 40)
    for row in all_rows(tmp_path / "run"):
        ends = [segment.start + segment.length for segment in row.segments]
        assert set(np.flatnonzero(row.tokens == 0) + 1) >= set(ends) - {LENGTH}
        assert {segment.source for segment in row.segments} == {UNKNOWN_IDENTITY}


def edited(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        document = json.loads((directory / "config.json").read_text())
        change(document)
        (directory / "config.json").write_text(json.dumps(document))

    return spoil


def shorter(directory: Path) -> None:
    np.fromfile(directory / "part-1-00000.npy", np.uint16)[:-40].tofile(directory / "part-1-00000.npy")


def overlapping(directory: Path) -> None:
    (directory / "part-0-00000.csv.gz").write_bytes(gzip.compress(b"0,40,a,/data/b,1\n30,1000,c,/data/d,2\n"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shorter, "orders 106 sequences and holds 106, the token files have 105: is it of other data"),
        (edited(lambda document: document["dataset"].update(sequence_length=16)), "is it of other data, or of another"),
        (
            edited(lambda document: document["dataset"].update(_CLASS_="a.NumpyVSLDatasetConfig")),
            "NumpyFSLDatasetConfig alone",
        ),
        (
            edited(lambda document: document["dataset"].update(mix="OLMoE-mix-0824")),
            "mix of the dataset is not supported",
        ),
        (edited(lambda document: document["dataset"].pop("paths")), "expected the token files one by one"),
        (edited(lambda document: document.pop("data_loader")), 'expected an object "data_loader"'),
        (
            edited(lambda document: document["data_loader"].update(global_batch_size=100)),
            "no multiple of sequence_length",
        ),
        (
            edited(lambda document: document["dataset"]["tokenizer"].update(eos_token_id="x")),  # type: ignore[attr-defined]
            "expected a token id in \"eos_token_id\", found 'x'",
        ),
        (lambda directory: (directory / "config.json").write_text("[" * 100_000), "expected OLMo-core's config.json"),
        (lambda directory: (directory / "part-2-00000.npy").unlink(), "1 of 3 token files are not there"),
        (overlapping, "found ones that overlap"),
        (
            lambda directory: (directory / "part-0-00000.csv.gz").write_bytes(gzip.compress(b"0;40\n")),
            "expected a line start,end,id,src,loc",
        ),
    ],
)
def test_what_does_not_fit_is_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(FILES, data)
    spoil(data)
    with pytest.raises(InputError, match=message):
        reconstruct_olmo_core(data / "config.json", tmp_path / "run", ORDER[:1], data_dir=data, corpus="/data")
    assert not (tmp_path / "run").exists()


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    arguments = (FILES / "config.json", tmp_path / "run")
    given: dict[str, Any] = {"data_dir": FILES, "corpus": "/data"}
    with pytest.raises(InputError, match="expected a divisor of 8"):
        reconstruct_olmo_core(*arguments, ORDER, **given, num_ranks=3)
    with pytest.raises(InputError, match="expected 1 to 26"):
        reconstruct_olmo_core(*arguments, ORDER, **given, last_step=27)
    with pytest.raises(InputError, match="of one seed, found epochs"):
        reconstruct_olmo_core(*arguments, [ORDER[0], ORDER[0]], **given)
    with pytest.raises(InputError, match="expected a file global_indices"):
        reconstruct_olmo_core(*arguments, [FILES / "part-0-00000.npy"], **given)
    with pytest.raises(InputError, match="token files are not there"):
        reconstruct_olmo_core(*arguments, ORDER)
    assert not (tmp_path / "run").exists()
    reconstruct_olmo_core(*arguments, ORDER, **given, last_step=1)
    with pytest.raises(RunError, match="holds an export already"):
        reconstruct_olmo_core(*arguments, ORDER, **given)
