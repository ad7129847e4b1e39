"""`kiseki search` as a user has it: a real process, or the same in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from indexer.reader import IndexReader
from indexer.search.records import SearchHit, Snippet
from indexer.search.search import SearchOptions, search
from tests.conftest import TextRun
from train_hooks.export_format.records import Segment, SequenceAddress
from ui.cli import app
from ui.terminal.search import print_hit

PROGRAM = Path(sys.executable).with_name("kiseki")


def kiseki(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a process."""
    done = subprocess.run([PROGRAM, "search", *map(str, arguments)], capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def answer(*arguments: str | Path) -> dict[str, Any]:
    """The JSON that the command prints, in this process."""
    done = CliRunner().invoke(app, ["search", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_hits_are_marked_and_facets_counted(text_run: TextRun) -> None:
    code, out, err = kiseki(text_run.run_dir, "彼女 OR wisdom", "--facets", "--limit", "3")
    assert (code, err) == (0, "")
    assert "⟦彼女⟧" in out or "⟦wisdom⟧" in out
    count = search(IndexReader.open(text_run.run_dir), "彼女 OR wisdom").count
    assert out.startswith(f"{count} segments\n") and "sources\n" in out and "tatoeba-ja" in out
    assert "steps\n" in out and "█" in out and "data-parallel ranks\n" in out and "--cursor search-v1." in out


def test_json_is_the_result_and_its_cursor_the_next_page(text_run: TextRun) -> None:
    seen: list[str] = []
    cursor: list[str] = []
    while True:
        page = answer(text_run.run_dir, '"of the" step:1..40', "--sort", "step", "--limit", "5", *cursor)
        assert page["count_relation"] == "eq" and page["sort"] == "step"
        seen += [hit["address"] for hit in page["hits"]]
        if page["next_cursor"] is None:
            break
        cursor = ["--cursor", page["next_cursor"]]
    options = SearchOptions(limit=100, sort="step")
    whole = search(IndexReader.open(text_run.run_dir), '"of the" step:1..40', options)
    assert seen == [str(hit.address) for hit in whole.hits] and len(seen) == page["count"] > 5


def test_options_choose_as_in_a_trace(text_run: TextRun) -> None:
    reader = IndexReader.open(text_run.run_dir)
    for options, query in (
        (["--checkpoint", "9"], "the step:..10"),
        (["--steps", "5:9"], "the step:5..9"),
        (["--dp-rank", "1"], "the dp_rank:1"),
        (["--source", "tatoeba-ja"], "の source:tatoeba-ja"),
    ):
        word = query.split()[0]
        assert answer(text_run.run_dir, word, "--limit", "0", *options)["count"] == search(reader, query).count > 0


def test_a_wrong_query_shows_its_place(text_run: TextRun) -> None:
    code, out, err = kiseki(text_run.run_dir, "全文 AND (wisdom")
    assert (code, out) == (2, "")
    assert err.split("\n")[1:] == ["  全文 AND (wisdom", "  \u3000\u3000     ^", ""]
    assert "\x1b" not in err and err.startswith("kiseki: expected ) for this (")
    code, _, err = kiseki(text_run.run_dir, "the", "--limit", "5000")
    assert code == 2 and err.count("\n") == 1


def test_no_segment_is_an_answer_and_a_sign_is_no_option(text_run: TextRun) -> None:
    done = CliRunner().invoke(app, ["search", str(text_run.run_dir), "--", "-step:0.."])
    assert done.exit_code == 1 and done.stdout.startswith("0 segments\n")


@pytest.mark.parametrize("terminal", [False, True])
def test_corpus_text_cannot_steer_the_terminal(terminal: bool) -> None:
    evil = "\x1b[31m\x07\x9b0m[bold]c[/bold]\nd\u202ee"
    hit = SearchHit(
        address=SequenceAddress(run_id="r", attempt=1, global_step=1, dp_rank=0, microbatch=0, slot=0),
        start=0, end=5, score=1.0, snippet=Snippet(text=evil, start=0, highlights=((0, 5), (22, 24))),
        segment=Segment(start=0, length=5, source="s\x1b]0;x\x07", document_id="d\r\n", document_token_offset=0),
    )  # fmt: skip
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, force_terminal=terminal, width=200)
        print_hit(console, hit)
        text = console.export_text(styles=False)
    assert "[bold]" in text and not any(ord(character) < 32 and character != "\n" for character in text)
    assert not {"\x9b", "\u202e"} & set(text) and text.count("\n") == 3
