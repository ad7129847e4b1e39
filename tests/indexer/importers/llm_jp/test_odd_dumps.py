"""Dumps with lines that are torn, absurd or of a kind that LLM-jp does not write: named, or written again as they were."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from indexer.importers.llm_jp.exporter import export_dump
from indexer.importers.llm_jp.importer import ImportedDump, import_dump
from tests.conftest import PEAK_KIB
from tests.support.export_maker import all_rows
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.verify.run import verify


def line(iteration: int, **other: Any) -> str:
    tokens = [(iteration * 7 + place) % 50 for place in range(8)]
    record = {
        "iteration": iteration, "dataset_idx": 0, "dataset_name": "ja_wiki", "doc_ids": [iteration], "text": f"t{iteration}",
        "token_ids": tokens, **other,
    }  # fmt: skip
    return json.dumps(record, ensure_ascii=False)


def write(directory: Path, lines: list[str], rank: int = 0) -> Path:
    path = directory / f"used_data_00/used_data_{rank}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(text + "\n" for text in lines).encode("utf-8", "surrogatepass")))
    return directory


def imported(tmp_path: Path, lines: list[str]) -> ImportedDump:
    return import_dump(write(tmp_path / "dump", lines), tmp_path / "run", vocab_size=60)


@pytest.mark.parametrize("torn", ['{"iteration": 1', '{"iteration": 99999999999, "dataset_idx"', '"iteration": 3 '])
def test_a_torn_line_moves_nothing(torn: str, tmp_path: Path) -> None:
    """Neither to an earlier iteration, as if the training had gone back, nor to one that never was."""
    done = imported(tmp_path, [line(11), line(12), torn, line(12), line(13)])
    assert done.attempts == ((11, 13),) and done.num_rows == 4 and done.num_problems == 1
    assert [row.address.global_step for row in all_rows(tmp_path / "run")] == [11, 12, 12, 13]


def test_ranks_that_end_at_different_iterations(tmp_path: Path) -> None:
    """Where one has no line it has a gap, also before the training went back; going back on one rank alone is refused."""
    write(tmp_path / "dump", [line(number) for number in (1, 2, 3, 4, 2, 3)])
    write(tmp_path / "dump", [line(number) for number in (1, 2, 3, 2, 3, 4)], rank=1)
    done = import_dump(tmp_path / "dump", tmp_path / "run", vocab_size=60)
    assert (done.attempts, done.num_rows, done.num_gap_steps) == (((1, 4), (2, 4)), 12, 2)
    lacking = {
        (attempt.info.attempt, rank, record.global_step)
        for attempt in RunReader(tmp_path / "run").attempts()
        for rank, record in attempt.step_records()
        if record.kind == "gap"
    }
    assert lacking == {(1, 1, 4), (2, 0, 4)}
    write(tmp_path / "dump", [line(number) for number in (1, 2, 2, 3, 4)], rank=1)
    with pytest.raises(InputError, match=r"rank 0 .* went back to iterations \[2\], rank 1 to none"):
        import_dump(tmp_path / "dump", tmp_path / "other", vocab_size=60)


def test_an_iteration_that_cannot_be_is_refused(tmp_path: Path) -> None:
    absurd = 99_999_999_999
    with pytest.raises(InputError, match=rf"used_data_0\.jsonl\.gz line 2: expected an iteration .* {absurd}"):
        imported(tmp_path, [line(1), line(absurd), line(2)])
    with pytest.raises(InputError, match=rf"found {absurd}; --step-offset -{absurd - 1} makes it step 1"):
        imported(tmp_path, [line(absurd)])
    write(tmp_path / "dump", [line(absurd)], rank=1)
    with pytest.raises(InputError, match=rf"found 1 and {absurd}"):
        imported(tmp_path, [line(1)])
    assert not (tmp_path / "run").exists()
    done = import_dump(
        write(tmp_path / "late", [line(absurd), line(absurd + 1)]),
        tmp_path / "run",
        vocab_size=60,
        step_offset=1 - absurd,
    )
    assert done.attempts == ((1, 2),)


def test_numbers_that_the_export_cannot_hold_are_named(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"dataset_idx": 1 << 70}, {"dataset_idx": -1}, {"token_ids": [1 << 70] * 8}, {"token_ids": [True] * 8},
        {"token_ids": []}, {"text": "\ud800"}, {"doc_ids": ["\ud800"]},
    ]  # fmt: skip
    done = imported(tmp_path, [line(1), *(line(2 + place, **item) for place, item in enumerate(bad)), line(9)])
    assert done.num_rows == 2 and done.num_problems == len(bad) and done.num_gap_steps == len(bad), done.problems


def test_any_doc_ids_come_out_as_they_went_in(tmp_path: Path) -> None:
    kinds: list[list[Any]] = [
        [5], [], [1, 2], ["a", "b"], ["12+13", 5, "", "a\u2028b"], ["12"], [1 << 70], [0, "0"], ["x+1"], [3, 3],
    ]  # fmt: skip
    lines = [line(place, doc_ids=ids) for place, ids in enumerate(kinds, 1)]
    assert imported(tmp_path, lines).num_problems == 0
    export_dump(RunReader(tmp_path / "run"), tmp_path / "again")
    written = gzip.decompress((tmp_path / "again/used_data_00/used_data_0.jsonl.gz").read_bytes()).decode()
    assert written == "".join(text + "\n" for text in lines)


def test_a_dump_of_a_late_part_of_a_training(tmp_path: Path) -> None:
    """Steps that the dump has not are many gaps, of which memory holds a few."""
    dump = write(tmp_path / "dump", [line(number) for number in range(12_000, 12_004)])
    few = write(tmp_path / "few", [line(number) for number in range(1, 5)])
    program = f"""
from pathlib import Path
from indexer.importers.llm_jp.importer import import_dump
import_dump(Path({str(few)!r}), Path({str(tmp_path / "first")!r}), vocab_size=60)
before = {PEAK_KIB}
import_dump(Path({str(dump)!r}), Path({str(tmp_path / "run")!r}), vocab_size=60)
print({PEAK_KIB} - before)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
    assert int(done.stdout) < 25_000, "KB"
    assert [row.address.global_step for row in all_rows(tmp_path / "run")] == list(range(12_000, 12_004))


def test_what_a_cut_file_lost_is_a_gap(tmp_path: Path) -> None:
    """In the step in which it was cut, of which lines may be missing: the export is not whole."""
    dump = write(tmp_path / "dump", [line(number // 4) for number in range(4, 4_000)])
    path = dump / "used_data_00/used_data_0.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-2_000])
    done = import_dump(dump, tmp_path / "run", vocab_size=60)
    assert done.num_problems == done.num_gap_steps == 1 and "cut or damaged behind line" in done.problems[0]
    assert verify(tmp_path / "run").exit_code == 3
