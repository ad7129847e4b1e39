"""How rows are known, in words: the commands, the sequence page and the table of attempts, in English and Japanese."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from indexer.build.update import update_index
from indexer.reader import IndexReader
from indexer.sequence import describe_row
from tests.support.make_kept_exports import EXPORTS, RUN_ID
from tests.ui.test_cli import run_here
from train_hooks.export_format.records import Evidence, Matched
from ui.html.attempts import attempts_html
from ui.html.evidence import evidence_words, matched_words
from ui.html.places import Place
from ui.html.sequence import sequence_facts_html
from ui.html.texts import say_in

NEW, OLD = EXPORTS / "3-sealed", EXPORTS / "1-sealed"


def test_export_status_says_how_rows_are_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run_here(capsys, monkeypatch, "export", "status", NEW)
    assert code == 0
    assert "evidence: forward 61.5%, loader 7.7%, declared 30.8%; matched: whole 46.2%, slice 15.4%, count 38.5%" in out
    head, *rows = [line.split() for line in out.splitlines() if not line.startswith(("run ", "evidence: "))]
    barrier = head.index("barrier") - 2  # `from step` and `to step` are two words
    assert [row[barrier] for row in rows] == ["2", "4"]
    code, out, _ = run_here(capsys, monkeypatch, "export", "status", NEW, "--json")
    found = json.loads(out)
    assert found["shares"]["num_rows"] == found["num_rows"] == 13
    assert [attempt["barrier_step"] for attempt in found["attempts"]] == [2, 4]
    _, out, _ = run_here(capsys, monkeypatch, "export", "status", OLD)
    assert "evidence: not recorded 100%; matched: not recorded 100%" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("      1", "      2"))]
    assert [row[barrier] for row in rows] == ["–", "–"]


def test_export_verify_says_how_rows_are_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, words in ((NEW, "evidence: forward 61.5%"), (OLD, "evidence: not recorded 100%")):
        code, out, _ = run_here(capsys, monkeypatch, "export", "verify", run)
        assert code == 3 and words in out, out
    _, out, _ = run_here(capsys, monkeypatch, "export", "verify", NEW, "--json")
    assert json.loads(out)["shares"]["forward"] == 8


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("evidence") / "run"
    shutil.copytree(NEW, run_dir)
    update_index(run_dir)
    return run_dir


def test_the_sequence_command_says_how_the_row_is_known(
    indexed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run_here(capsys, monkeypatch, "sequence", indexed, f"{RUN_ID}/a1/s1/r0/m1/q0")
    assert code == 0
    assert "evidence: forward: the tokens were seen in the forward call\n" in out
    assert "matched: slice: the forward got a part of the tokens (dtype input_ids; [:, :-1])\n" in out
    _, out, _ = run_here(capsys, monkeypatch, "sequence", indexed, f"{RUN_ID}/a1/s2/r0/m0/q0", "--json")
    found = json.loads(out)
    assert (found["evidence"], found["matched"], found["relation"]) == ("loader", "count", None)


def described(run_dir: Path, address: str, **changed: Any) -> dict[str, Any]:
    """A sequence as the API gives it."""
    reader = IndexReader.open(run_dir)
    sequence = reader.sequence(address)
    return {**reader.describe(sequence), **describe_row(reader, sequence), "loss_mask": None, **changed}


def test_the_sequence_page_says_how_the_row_is_known(indexed: Path) -> None:
    place = Place(page="sequence", params={"run": RUN_ID})
    found = described(indexed, f"{RUN_ID}/a1/s1/r0/m1/q0")
    assert (
        "<dt>evidence</dt><dd>forward: the tokens were seen in the forward call</dd><dt>matched</dt>"
        "<dd>slice: the forward got a part of the tokens (dtype input_ids; [:, :-1])</dd>"
    ) in sequence_facts_html(place, say_in("en"), found)
    assert "<dt>根拠</dt><dd>forward：トークンは forward の呼び出しで確認された</dd>" in sequence_facts_html(
        place, say_in("ja"), found
    )
    hostile = sequence_facts_html(place, say_in("en"), {**found, "relation": "dtype <script>"})
    assert "<script>" not in hostile and "dtype &lt;script&gt;" in hostile
    unknown = sequence_facts_html(place, say_in("en"), {**found, "evidence": None, "matched": None, "relation": None})
    assert "<dt>evidence</dt><dd>not recorded</dd><dt>matched</dt><dd>not recorded</dd>" in unknown


def test_every_kind_of_evidence_has_its_words() -> None:
    for lang in ("en", "ja"):
        say = say_in(lang)
        words = [evidence_words(say, kind) for kind in (*Evidence, None)]
        words += [matched_words(say, kind, None) for kind in Matched]
        assert len(set(words)) == len(words)
        assert not set(words) & {kind.value for kind in (*Evidence, *Matched)}


def test_attempts_show_the_version_of_their_format() -> None:
    attempt = {
        "attempt": 1, "parent_attempt": None, "resume_step": 0, "num_writers": 2, "started": "2026-11-30T00:00:00Z",
        "export_format_version": 2, "barrier_step": None, "first_step": 1, "last_step": 4, "canonical": True,
        "canonical_first_step": 1, "canonical_last_step": 4,
    }  # fmt: skip
    shown = attempts_html(say_in("en"), [attempt, {**attempt, "attempt": 2, "export_format_version": 3}])
    assert '<th scope="col">export format</th></tr>' in shown
    assert [row.rpartition("<td>")[2] for row in shown.split("</td></tr>")[:-1]] == ["2", "3"]
