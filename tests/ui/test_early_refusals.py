"""What cannot work is refused before the long part of a command, and outcomes that repeat are one line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.conftest import CORPUS, TextRun
from tests.support.export_maker import MadeStep, make_attempt
from tests.ui.test_cli import run_here
from train_hooks import Segment
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.attempts import RunSpec


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump/used_data_00/used_data_0.jsonl.gz"
    path.parent.mkdir(parents=True)
    record = {"dataset_idx": 0, "dataset_name": "x", "doc_ids": [1], "text": "", "token_ids": [1, 2, 3]}
    lines = [json.dumps({"iteration": step, **record}) + "\n" for step in (1, 2, 3, 50)]
    path.write_bytes(gzip.compress("".join(lines).encode()))
    return tmp_path / "dump"


def test_imports(
    dump: Path, text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, options, message in (
        (tmp_path / "run", [], "expected --tokenizer"),
        (tmp_path / "run", ["--tokenizer", tmp_path / "none"], "expected a tokenizer.json"),
        (tmp_path / "run", ["--vocab-size", "10", "--eos", "10"], "--eos: expected a token id below 10, found 10"),
        (text_run.run_dir, ["--vocab-size", "10"], "holds an export already"),
    ):
        code, out, err = run_here(capsys, monkeypatch, "import", "llm-jp", dump, run, *options)
        assert (code, out) == (2, "") and message in err and "importing" not in err, err
    assert not (tmp_path / "run").exists()
    code, _, err = run_here(
        capsys, monkeypatch, "export", "resolve", text_run.run_dir, tmp_path / "copy", "--eos", "2000"
    )
    assert code == 2 and "--eos: expected a token id below 2000, found 2000" in err and not (tmp_path / "copy").exists()


def test_a_corpus_is_looked_for_before_the_hashes_are_checked(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (["--corpus", tmp_path], ["--corpus", CORPUS, "--tokenizer", tmp_path / "none"]):
        code, out, err = run_here(capsys, monkeypatch, "export", "verify", text_run.run_dir, *options)
        assert (code, out) == (2, "") and "expected" in err and "verifying" not in err


def test_findings_that_repeat_are_one_line(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here(capsys, monkeypatch, "import", "llm-jp", dump, tmp_path / "run", "--vocab-size", "10")[0] == 0
    code, out, _ = run_here(capsys, monkeypatch, "export", "verify", tmp_path / "run")
    lines = out.splitlines()
    assert code == 3 and "no line of this iteration" in lines[0] and lines[0].endswith(" (46 times)")
    assert lines[1].startswith("the export is incomplete: ")
    assert lines[2:] == ["evidence: declared 100%; matched: count 100%"]
    found = json.loads(run_here(capsys, monkeypatch, "export", "verify", tmp_path / "run", "--json")[1])
    assert len(found["findings"]) == 46


def test_names_of_files_do_not_reach_the_terminal_as_they_are(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (dump / "used_data_00").rename(dump / "used_data_\x1b[31m")
    path = dump / "used_data_\x1b[31m/used_data_0.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"{\n"))
    for arguments in (
        ["import", "llm-jp", dump, tmp_path / "run", "--vocab-size", "10"],
        ["export", "verify", tmp_path / "run"],
    ):
        _, out, err = run_here(capsys, monkeypatch, *arguments)
        assert "␛[31m" in out + err and "\x1b" not in out + err


def test_a_document_of_a_run_without_a_tokenizer(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--corpus` wants one, and takes it from `--tokenizer`."""
    tokenizer = RunReader(text_run.run_dir).tokenizer_path()
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "the words of a text", "source": "s"}\n')
    ids = Tokenizer.from_file(str(tokenizer)).encode("the words of a text").ids
    name = "a@corpus.jsonl#1"
    part = Segment(start=0, length=len(ids), source="corpus", document_id=name, document_token_offset=0)
    step = MadeStep(microbatches={0: [np.array([ids])]}, segments={0: [[[part]]]})
    spec = RunSpec(sequence_length=len(ids), vocab_size=2000, run_id="bare", config={})
    make_attempt(tmp_path / "run", spec, [step])
    assert run_here(capsys, monkeypatch, "index", tmp_path / "run")[0] == 0
    arguments = ["document", tmp_path / "run", "corpus", name, "--corpus", tmp_path / "corpus.jsonl"]
    code, _, err = run_here(capsys, monkeypatch, *arguments)
    assert code == 2 and "tokenizer" in err
    code, out, _ = run_here(capsys, monkeypatch, *arguments, "--tokenizer", tokenizer)
    assert code == 0 and "the words of a text" in out
    code, _, err = run_here(capsys, monkeypatch, *arguments[:-2], "--tokenizer", tokenizer)
    assert code == 2 and "--tokenizer: expected --corpus" in err
