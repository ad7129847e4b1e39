"""What `trace` and `count` refuse, and what they say then: one line, what is there, and what to do."""

import io
import json
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import TextRun
from tests.ui.test_cli import PROGRAM, run_here


@pytest.fixture
def passage(text_run: TextRun) -> str:
    return next(iter(text_run.documents.values()))[:150]


def test_ids_outside_the_vocabulary(
    text_run: TextRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("trace", "count"):
        for ids in ("2000", "1,-1", "99999999999999999999999"):
            code, out, err = run_here(capsys, monkeypatch, command, text_run.run_dir, "--token-ids", ids)
            assert (code, out) == (2, ""), (command, ids)
            assert "expected token ids in [0, 2000)" in err and len(err.splitlines()) == 1


def test_what_is_not_there_is_named(
    text_run: TextRun, passage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = text_run.num_steps
    cases: list[tuple[list[str], str]] = [
        (["--checkpoint", str(steps + 1)], f"expected a step that is indexed, 1 to {steps}, found {steps + 1}"),
        (["--steps", f"{steps + 5}:"], f"expected a step that is indexed, 1 to {steps}, found {steps + 5}"),
        (["--attempt", "9"], "there is no attempt 9; there are: 1"),
        (["--dp-rank", "7"], "there is no data-parallel rank 7; there are: 0, 1"),
        (["--source", "devils-dictionari"], "near: 'devils-dictionary'"),
        (["--source", "tatoeba-ja", "--document", "none"], "source tatoeba-ja has no document 'none'"),
    ]
    for command in ("trace", "count", "search"):
        for options, message in cases:
            code, out, err = run_here(capsys, monkeypatch, command, text_run.run_dir, "dictionary", *options)
            assert (code, out) == (2, ""), (command, options, err)
            assert message in err and len(err.splitlines()) == 1, err
    steps_of = ["steps", text_run.run_dir, "--steps", f"{steps + 5}:"]
    code, out, err = run_here(capsys, monkeypatch, *steps_of)
    assert (code, out) == (2, "") and "expected a step that is indexed" in err
    for option in ("--checkpoint", "--before-step"):
        assert run_here(capsys, monkeypatch, "trace", text_run.run_dir, passage, option, str(steps))[0] == 0
    assert run_here(capsys, monkeypatch, "count", text_run.run_dir, passage, "--before-step", "1")[:2] == (1, "0\n")
    assert run_here(capsys, monkeypatch, "count", text_run.run_dir, passage, "--before-step", "9999")[0] == 0


def test_one_text_alone(
    text_run: TextRun, passage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([{"role": "assistant", "content": passage}]))
    tracing = partial(run_here, capsys, monkeypatch, "trace", text_run.run_dir)
    for arguments in (
        [passage, "--chat", chat], [passage, "--token-ids", "1"], [passage, "--file", chat],
        ["--token-ids", "1", "--chat", chat], ["--token-ids", "1", "--file", chat], ["--chat", chat, "--file", chat],
    ):  # fmt: skip
        code, out, err = tracing(*arguments)
        assert (code, out) == (2, "") and "found several" in err and len(err.splitlines()) == 1, arguments


def test_standard_input_and_byte_order_marks(
    text_run: TextRun, passage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = json.dumps([{"role": "assistant", "content": passage}]).encode("utf-8-sig")
    (tmp_path / "chat.json").write_bytes(chat)
    (tmp_path / "text.txt").write_bytes(passage.encode("utf-8-sig"))
    tracing = partial(run_here, capsys, monkeypatch, "trace", text_run.run_dir, "--json")
    spans = json.loads(tracing(passage)[1])["spans"]
    given = {"--chat": chat, "--file": passage.encode("utf-8-sig")}
    for option, file in (("--chat", "chat.json"), ("--file", "text.txt")):
        assert json.loads(tracing(option, tmp_path / file)[1])["spans"] == spans
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(given[option]), isatty=lambda: False))
        assert json.loads(tracing(option, "-")[1])["spans"] == spans


def test_chats_that_are_none(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chat.json"
    for text, message in (("[" * 100_000, "is not JSON"), ("{", "is not JSON"), ("3", "expected a list of messages")):
        file.write_text(text)
        code, out, err = run_here(capsys, monkeypatch, "trace", text_run.run_dir, "--chat", file)
        assert (code, out) == (2, "") and err.startswith("kiseki: --chat: ") and message in err, err
    code, _, err = run_here(capsys, monkeypatch, "trace", text_run.run_dir, "--chat", tmp_path / "none.json")
    assert code == 2 and err.startswith("kiseki: --chat: ")


def test_numbers_out_of_their_range_are_named_as_options(
    text_run: TextRun, passage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for option, value in (("--limit", "-1"), ("--limit", "101"), ("--max-spans", "-1"), ("--checkpoint", "-1")):
        code, out, err = run_here(capsys, monkeypatch, "trace", text_run.run_dir, passage, option, value)
        assert (code, out) == (2, "") and option in err and "equal to" in err, err


def test_who_waits_for_kernels_is_told(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are those that numba gives its files: whoever asks a second time waits no more."""
    run_here(capsys, monkeypatch, "count", text_run.run_dir, " the")
    assert run_here(capsys, monkeypatch, "count", text_run.run_dir, " the")[2] == ""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    code, _, err = run_here(capsys, monkeypatch, "count", text_run.run_dir, " the")
    assert code == 0 and err.startswith("compiling the search kernels, once")


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_result_that_cannot_be_written_is_one_line(arguments: list[str], text_run: TextRun, passage: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [PROGRAM, "trace", text_run.run_dir, passage, *arguments], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and b"No space left on device" in done.stderr
