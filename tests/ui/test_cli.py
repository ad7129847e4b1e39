"""The command as a user has it: a real process, its output, its errors, its exit code."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from tests.conftest import TextRun, byte_level_bpe
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks.export_format.writing.attempts import RunSpec
from ui.cli import COMMANDS, app, main
from ui.lazy_commands import LazyCommand
from ui.terminal.visible import safe

PROGRAM = Path(sys.executable).with_name("kiseki")


def kiseki(*arguments: str | Path, text: str | bytes = b"") -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    data = text.encode() if isinstance(text, str) else text
    done = subprocess.run([PROGRAM, *map(str, arguments)], input=data, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def passage(text_run: TextRun) -> str:
    return "Not in the corpus at all. " + next(iter(text_run.documents.values()))[:150]


def test_trace_marks_the_text_and_names_the_places(text_run: TextRun, passage: str) -> None:
    kiseki("trace", text_run.run_dir, passage)  # compiles the kernels on a new machine, and says so
    code, out, err = kiseki("trace", text_run.run_dir, passage)
    assert (code, err) == (0, "")
    assert "⟦1: " in out and "seen 2 times" in out and ", rank" in out
    assert "text/a1/s1/r" in out and "devils-dictionary / " in out


def test_trace_reads_files_and_standard_input_alike(text_run: TextRun, passage: str, tmp_path: Path) -> None:
    file = tmp_path / "output.txt"
    file.write_text(passage, encoding="utf-8")
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps({"messages": [{"role": "assistant", "content": passage}]}), encoding="utf-8")
    answers = [
        kiseki("trace", text_run.run_dir, "--file", file, "--json"),
        kiseki("trace", text_run.run_dir, "-", "--json", text=passage),
        kiseki("trace", text_run.run_dir, "--chat", chat, "--json"),
        kiseki("trace", text_run.run_dir, "--json", text=passage),
    ]
    documents = [json.loads(out) for _, out, _ in answers]
    for document in documents:
        del document["took_ms"]
    assert all(document == documents[0] for document in documents)
    assert documents[0]["spans"][0]["count"] == 2


def test_nothing_found_is_one_line_and_exit_code_1(text_run: TextRun) -> None:
    text = "xyzzy plugh qqqq zzzz vvvv 9q8q7"
    code, out, err = kiseki("trace", text_run.run_dir, text)
    assert (code, out) == (1, "") and "no span of ≥ 8 tokens" in err and len(err.splitlines()) == 1
    code, out, err = kiseki("trace", text_run.run_dir, text, "--json")
    assert code == 1 and json.loads(out)["spans"] == [] and len(err.splitlines()) == 1
    assert kiseki("count", text_run.run_dir, text) == (1, "0\n", "")
    code, out, err = kiseki("search", text_run.run_dir, "xyzzyplugh")
    assert code == 1 and out.startswith("0 segments") and err == ""
    code, out, _ = kiseki("steps", text_run.run_dir, "--steps", "1:2", "--spikes", "--json")
    assert code == 1 and json.loads(out)["steps"] == []


def test_index_says_it_is_up_to_date(text_run: TextRun) -> None:
    code, out, _ = kiseki("index", text_run.run_dir, "--json")
    assert code == 0 and json.loads(out)["published"] is False


def run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """The same in this process, which saves the start of an interpreter."""
    monkeypatch.setattr(sys, "argv", ["kiseki", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_control_characters_of_texts_do_not_reach_the_terminal(
    text_run: TextRun, passage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b[31mred\x07\x9b2J " + passage
    code, out, _ = run_here(capsys, monkeypatch, "trace", text_run.run_dir, hostile)
    assert code == 0 and "␛[31mred␇" in out
    assert not any(ord(character) < 32 and character not in "\n\t" for character in out)
    assert "\x9b" not in out and len(safe(hostile)) == len(hostile)


def test_token_ids_of_another_tokenizer_go_by_their_text(
    text_run: TextRun, passage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = byte_level_bpe([passage], 300)
    other.save(str(tmp_path / "other.json"))
    ids = ",".join(map(str, other.encode(passage).ids))
    tracing = partial(run_here, capsys, monkeypatch, "trace", text_run.run_dir, "--json")
    _, by_text, _ = tracing(passage)
    code, by_ids, _ = tracing("--token-ids", ids, "--tokenizer", tmp_path / "other.json")
    assert code == 0 and json.loads(by_ids)["spans"] == json.loads(by_text)["spans"]
    code, _, err = tracing("--token-ids", "9999", "--tokenizer", tmp_path / "other.json")
    assert code == 2 and "found [9999]" in err
    assert tracing(passage, "--tokenizer", tmp_path / "other.json")[0] == 2
    count = partial(run_here, capsys, monkeypatch, "count", text_run.run_dir)
    word = " the"
    ids = ",".join(map(str, other.encode(word).ids))
    assert count("--token-ids", ids, "--tokenizer", tmp_path / "other.json")[1] == count(word)[1] != "0\n"


def loaded(command: Any) -> Any:
    return command.load() if isinstance(command, LazyCommand) else command


def commands() -> list[str]:
    """Every command that there is, groups before their commands."""

    def below(group: object, prefix: str) -> list[str]:
        found = {key: loaded(command) for key, command in getattr(group, "commands", {}).items()}
        return [name for key, command in found.items() for name in [prefix + key, *below(command, f"{prefix}{key} ")]]

    return below(get_command(app), "")


def test_every_command_has_help_and_is_documented(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert {"trace", "export verify"} <= set(commands())
    for command in ["", *commands()]:
        code, out, _ = run_here(capsys, monkeypatch, *command.split(), "--help")
        assert code == 0 and f"Usage: kiseki {command}".strip() in out
        assert f"`kiseki {command}" in documented


def after(program: str, arguments: list[str]) -> tuple[int, str]:
    """(exit code, last line of standard output) of a program with `{}` for the arguments of the command."""
    done = subprocess.run(
        [sys.executable, "-c", program.format(arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.splitlines()[-1]


def test_no_help_page_waits_for_what_its_command_runs() -> None:
    program = """
import sys
from ui.cli import main
for command in {0}:
    sys.argv = ["kiseki", *command.split(), "--help"]
    try:
        main()
    except SystemExit as done:
        assert done.code == 0, command
print([name for name in ("numpy", "pyarrow", "duckdb", "numba", "tokenizers", "tantivy", "fastapi", "rich.console")
       if name in sys.modules])
"""
    assert after(program, commands()) == (0, "[]")


def test_the_list_of_commands_waits_for_none_of_them() -> None:
    """Each is imported when it is run; what the list says of it is what it says of itself."""
    program = """
import sys
from ui.cli import main
sys.argv = ["kiseki", *{}]
try:
    main()
finally:
    print([name for name in ("pyarrow", "rich", "numba", "ui.commands.arguments") if name in sys.modules])
"""
    for argument, code in (("--help", 0), ("nonsense", 2)):
        assert after(program, [argument]) == (code, "[]")
    for command in COMMANDS:
        assert command.get_short_help_str(200) == command.load().get_short_help_str(200).partition(" `")[0]


def test_a_wrong_command_names_a_near_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = run_here(capsys, monkeypatch, "trce")
    assert code == 2 and "Did you mean 'trace'" in err
    code, _, err = run_here(capsys, monkeypatch, "export", "verfy")
    assert code == 2 and "Did you mean 'verify'" in err


def test_checkpoint_and_steps_narrow_the_answer(
    text_run: TextRun, passage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = text_run.num_steps // 2

    def count(*options: str) -> int:
        code, out, _ = run_here(capsys, monkeypatch, "trace", text_run.run_dir, passage, "--json", *options)
        counts = [span["count"] for span in json.loads(out)["spans"]]
        assert code == (0 if counts else 1)
        return max(counts, default=0)

    assert count() == 2
    assert count("--checkpoint", str(half)) == count("--before-step", str(half + 1)) == 1
    assert count("--steps", f"{half + 1}:") == 1
    assert count("--before-step", "1") == 0


def test_bad_input_is_one_line_and_exit_code_2(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_made = tmp_path / "half"
    (half_made / "export").mkdir(parents=True)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    run = text_run.run_dir
    cases: list[tuple[list[object], str]] = [
        (["trace", tmp_path, "text"], "is not a run directory"),
        (["index", half_made], "is not a run directory"),
        (["index", tmp_path / "missing"], "is not a run directory"),
        (["trace", run, ""], "found none"),
        (["trace", run, "--token-ids", "1 2 3 70000"], "vocabulary"),
        (["trace", run, "--token-ids", "1 two"], "expected integers"),
        (["trace", run, "text", "--steps", "abc"], "A:B"),
        (["trace", run, "text", "--min-length", "0"], "min_length"),
        (["trace", run, "--file", tmp_path / "nothing.txt"], "nothing.txt"),
        (["trace", run, "--file", tmp_path / "latin1.txt"], "UTF-8"),
        (["serve", tmp_path], "is not a run directory"),
    ]
    for arguments, expected in cases:
        code, out, err = run_here(capsys, monkeypatch, *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("kiseki: ") and expected in err and len(err.strip().splitlines()) == 1, err
    assert run_here(capsys, monkeypatch, "nonsense")[0] == 2
    code, out, err = kiseki("trace", tmp_path, "text")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1


def test_tokenizer_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_level_bpe(["some text " * 50], 400).save(str(tmp_path / "tokenizer.json"))
    spec = RunSpec(sequence_length=4, vocab_size=100, tokenizer=tmp_path / "tokenizer.json", config={})
    make_attempt(tmp_path / "run", spec, [MadeStep(microbatches={0: [np.array([[1, 2, 3, 4]])]})])
    code, _, err = run_here(capsys, monkeypatch, "index", tmp_path / "run")
    assert code == 2 and "vocab_size 100" in err and len(err.splitlines()) == 1
