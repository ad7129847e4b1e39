"""LLM-jp dumps: imported row for row, searched, written again byte for byte; what is wrong with one is named.

The oracle reads the dump by itself: gzip, JSON, and the order of the lines.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from indexer.build.update import update_index
from indexer.documents.history import document_history
from indexer.importers.llm_jp.exporter import export_dump
from indexer.importers.llm_jp.importer import import_dump
from indexer.reader import IndexReader
from indexer.trace.trace import TraceOptions, trace
from tests.conftest import TextRun, byte_level_bpe, read_documents
from tests.support.export_maker import all_rows
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.origin import OriginKind, origin_of
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.writer import RankWriter

Line = dict[str, Any]
LENGTH, EOS, RANKS, A_STEP = 65, 0, 2, 2


def packed_lines(tokenizer: Tokenizer) -> list[Line]:
    """Two datasets, each concatenated and cut to L + 1 tokens that overlap by one, as Megatron's samples do."""
    lines: list[Line] = []
    for index, source in enumerate(("devils-dictionary", "tatoeba-ja")):
        tokens: list[int] = []
        owners: list[int] = []
        for ordinal, text in enumerate(read_documents(source, 12).values()):
            ids = [*tokenizer.encode(text, add_special_tokens=False).ids, EOS]
            tokens += ids
            owners += [ordinal] * len(ids)
        for begin in range(0, len(tokens) - LENGTH, LENGTH - 1)[:40]:
            part = tokens[begin : begin + LENGTH]
            lines.append(
                {
                    "dataset_idx": index + 3,
                    "dataset_name": f"/data/{source}_train_0_text_document",
                    "doc_ids": sorted(set(owners[begin : begin + LENGTH])),
                    "text": tokenizer.decode(part, skip_special_tokens=False),
                    "token_ids": part,
                }
            )
    return lines


def write_dump(
    directory: Path, lines: list[Line], iterations: list[int], folds: tuple[str, ...] = ("00", "01")
) -> None:
    """A_STEP lines an iteration on each rank; each rank's iterations are cut into folds of the same number of lines."""
    of_rank: dict[int, list[Line]] = {rank: [] for rank in range(RANKS)}
    place = 0
    for iteration in iterations:
        for rank in range(RANKS):
            for _ in range(A_STEP):
                of_rank[rank].append({"iteration": iteration, **lines[place % len(lines)]})
                place += 1
    for rank, found in of_rank.items():
        size = -(-len(found) // len(folds))
        for number, fold in enumerate(folds):
            part = found[number * size : (number + 1) * size]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part)
            write_text(directory / f"used_data_{fold}/used_data_{rank}.jsonl.gz", text)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def read_dump(directory: Path) -> dict[str, str]:
    """Every file's text, by name."""
    return {
        path.relative_to(directory).as_posix(): gzip.decompress(path.read_bytes()).decode()
        for path in sorted(directory.rglob("*.gz"))
    }


def as_lines(row: Row) -> tuple[int, int, list[int]]:
    return row.address.global_step, row.address.dp_rank, row.tokens.tolist()


def wanted(directory: Path, offset: int = 0) -> list[tuple[int, int, list[int]]]:
    found = []
    for name, text in read_dump(directory).items():
        rank = int(name.removesuffix(".jsonl.gz").rpartition("_")[2])
        lines = [json.loads(line) for line in text.split("\n") if line]
        found += [(line["iteration"] + offset, rank, line["token_ids"]) for line in lines]
    return found


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [*read_documents("devils-dictionary", 12).values(), *read_documents("tatoeba-ja", 12).values()]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_level_bpe(texts, 1200).save(str(path))
    return path


@pytest.fixture(scope="module")
def lines(tokenizer: Path) -> list[Line]:
    return packed_lines(Tokenizer.from_file(str(tokenizer)))


@pytest.fixture
def dump(tmp_path: Path, lines: list[Line]) -> Path:
    """Iterations 1 to 12, then 9 to 16: a restart from the model checkpoint of step 8, in the midst of a fold."""
    write_dump(tmp_path / "dump", lines, [*range(1, 13), *range(9, 17)])
    return tmp_path / "dump"


def test_every_line_is_a_row_and_comes_out_as_it_was(dump: Path, tokenizer: Path, tmp_path: Path) -> None:
    done = import_dump(dump, tmp_path / "run", tokenizer=tokenizer, eos=EOS)
    assert (done.num_rows, done.num_files, done.num_ranks, done.num_problems) == (20 * RANKS * A_STEP, 4, RANKS, 0)
    assert done.attempts == ((1, 12), (9, 16)) and done.num_gap_steps == 0
    rows = all_rows(tmp_path / "run")
    assert sorted(map(as_lines, rows)) == sorted(wanted(dump))
    assert {(row.address.attempt, row.address.global_step) for row in rows} == {
        *((1, step) for step in range(1, 13)), *((2, step) for step in range(9, 17))
    }  # fmt: skip
    report = verify(tmp_path / "run")
    assert report.findings == () and report.num_rows == done.num_rows
    run = RunReader(tmp_path / "run")
    origin = origin_of(run.info)
    assert origin.kind is OriginKind.IMPORTED and status(run).origin == origin
    export_dump(run, tmp_path / "again")
    assert read_dump(tmp_path / "again") == read_dump(dump)
    again = import_dump(tmp_path / "again", tmp_path / "run2", tokenizer=tokenizer, eos=EOS)
    assert list(map(as_lines, all_rows(tmp_path / "run2"))) == list(map(as_lines, rows)) and again.num_problems == 0


def test_documents_are_known_as_far_as_the_dump_says(
    dump: Path, lines: list[Line], tokenizer: Path, tmp_path: Path
) -> None:
    import_dump(dump, tmp_path / "run", tokenizer=tokenizer, eos=EOS)
    by_tokens = {tuple(line["token_ids"]): line for line in lines}
    several = 0
    for row in all_rows(tmp_path / "run"):
        line = by_tokens[tuple(row.tokens.tolist())]
        assert [segment.document_id for segment in row.segments] == list(map(str, line["doc_ids"]))
        assert {segment.source for segment in row.segments} == {line["dataset_name"]}
        assert row.segments[0].document_token_offset == -1
        for before, after in zip(row.segments, row.segments[1:], strict=False):
            assert row.tokens[after.start - 1] == EOS and after.start == before.start + before.length
            assert after.document_token_offset == 0
            several += 1
        assert sum(segment.length for segment in row.segments) == LENGTH
    assert several > 5
    import_dump(dump, tmp_path / "blind", tokenizer=tokenizer)
    for row in all_rows(tmp_path / "blind"):
        line = by_tokens[tuple(row.tokens.tolist())]
        assert [segment.document_id for segment in row.segments] == ["+".join(map(str, line["doc_ids"]))]
    export_dump(RunReader(tmp_path / "blind"), tmp_path / "again")
    assert read_dump(tmp_path / "again") == read_dump(dump)


def test_an_imported_run_is_indexed_and_traced(dump: Path, lines: list[Line], tokenizer: Path, tmp_path: Path) -> None:
    import_dump(dump, tmp_path / "run", tokenizer=tokenizer, eos=EOS)
    update_index(tmp_path / "run")
    reader = IndexReader.open(tmp_path / "run")
    line = lines[A_STEP * RANKS * 2]
    found = trace(reader, token_ids=line["token_ids"], options=TraceOptions(num_hits=20))
    canonical = [step for step, _, tokens in wanted(dump) if tokens == line["token_ids"]]
    assert found.spans[0].num_tokens == LENGTH and found.spans[0].first_step == min(canonical)
    assert all(
        hit.document_token_offset is None for hit in found.spans[0].hits if hit.segments[0].document_token_offset < 0
    )
    history = document_history(reader, line["dataset_name"], str(line["doc_ids"][0]))
    unknown = [e for e in history.exposures if e.segment.document_token_offset < 0]
    assert unknown and all(exposure.num_new_tokens == 0 for exposure in unknown)
    assert history.num_tokens_seen == sum(exposure.segment.length for exposure in history.exposures)
    assert sum(end - start for start, end in history.ranges) == history.num_tokens_distinct < history.num_tokens_seen


def test_bad_lines_are_named_and_gaps(dump: Path, tokenizer: Path, tmp_path: Path) -> None:
    path = dump / "used_data_00/used_data_1.jsonl.gz"
    good = gzip.decompress(path.read_bytes()).decode().split("\n")
    spoilt: dict[int, Callable[[str], str]] = {
        1: lambda line: line[:-20],
        2: lambda line: line.replace('"token_ids"', '"tokens"'),
        4: lambda line: json.dumps({**json.loads(line), "token_ids": [1, 2, 3]}),
        5: lambda line: json.dumps({**json.loads(line), "token_ids": [5000] * LENGTH}),
        7: lambda line: json.dumps({**json.loads(line), "token_ids": [1.5] * LENGTH}),
        8: lambda line: json.dumps({**json.loads(line), "token_ids": [-1] * LENGTH}),
        10: lambda line: json.dumps({**json.loads(line), "doc_ids": "7"}),
        11: lambda _: "no JSON at all",
    }  # fmt: skip
    texts = [spoilt[number](line) if number in spoilt else line for number, line in enumerate(good, 1)]
    write_text(path, "\n".join(texts))
    done = import_dump(dump, tmp_path / "run", tokenizer=tokenizer, eos=EOS)
    assert done.num_problems == len(spoilt) and done.num_rows == 20 * RANKS * A_STEP - len(spoilt)
    for number in spoilt:
        assert (
            sum(problem.startswith(f"used_data_00/used_data_1.jsonl.gz line {number}: ") for problem in done.problems)
            == 1
        )
    report = verify(tmp_path / "run")
    assert report.exit_code == 3
    assert sum("line could not be read" in finding.message for finding in report.findings) == 5  # steps, not lines
    kept = [line for number, line in enumerate(good, 1) if number not in spoilt]
    found = [as_lines(row)[2] for row in all_rows(tmp_path / "run") if row.address.dp_rank == 1][: len(kept) - 1]
    assert found == [json.loads(line)["token_ids"] for line in kept if line][: len(found)]


def test_iterations_that_the_dump_lacks_are_gaps(lines: list[Line], tokenizer: Path, tmp_path: Path) -> None:
    write_dump(tmp_path / "dump", lines, [4, 5, 8, 7, 8])
    done = import_dump(tmp_path / "dump", tmp_path / "run", tokenizer=tokenizer, eos=EOS)
    assert done.attempts == ((4, 8), (7, 8)) and done.num_gap_steps == 5 * RANKS
    assert sorted(map(as_lines, all_rows(tmp_path / "run"))) == sorted(wanted(tmp_path / "dump"))
    assert verify(tmp_path / "run").exit_code == 3
    found = status(RunReader(tmp_path / "run"))
    assert found.num_gaps == 5 * RANKS and found.newest_committed_step == 8 and found.canonical_attempt == 2


def test_text_that_is_not_what_the_tokens_say_is_kept(lines: list[Line], tokenizer: Path, tmp_path: Path) -> None:
    others = [{**line, "text": line["text"].replace("<|endoftext|>", "") + "…", "doc_ids": []} for line in lines]
    write_dump(tmp_path / "dump", others, [0, 1])
    with pytest.raises(InputError, match="found iteration 0; give --step-offset 1"):
        import_dump(tmp_path / "dump", tmp_path / "run", tokenizer=tokenizer)
    import_dump(tmp_path / "dump", tmp_path / "run", vocab_size=1200, step_offset=1, run_id="named")
    run = RunReader(tmp_path / "run")
    assert run.info.run_id == "named" and run.info.tokenizer_file is None
    assert sorted(map(as_lines, all_rows(tmp_path / "run"))) == sorted(wanted(tmp_path / "dump", 1))
    export_dump(run, tmp_path / "again")
    assert read_dump(tmp_path / "again") == read_dump(tmp_path / "dump")


def test_an_export_of_our_own_as_a_dump(text_run: TextRun, tmp_path: Path) -> None:
    run = RunReader(text_run.run_dir)
    done = export_dump(run, tmp_path / "dump")
    rows = all_rows(text_run.run_dir)
    assert done.num_rows == len(rows)
    assert sorted(map(as_lines, rows)) == sorted(wanted(tmp_path / "dump"))
    first = json.loads(read_dump(tmp_path / "dump")["used_data_00/used_data_0.jsonl.gz"].split("\n")[0])
    assert list(first) == ["iteration", "dataset_idx", "dataset_name", "doc_ids", "text", "token_ids"]
    assert first["doc_ids"] == [segment.document_id for segment in rows[0].segments]
    assert text_run.documents["devils-dictionary", first["doc_ids"][0]].startswith(first["text"][:20])
    with pytest.raises(InputError, match="expected an empty directory"):
        export_dump(run, tmp_path / "dump")
    import_dump(tmp_path / "dump", tmp_path / "back", tokenizer=run.tokenizer_path())
    assert sorted(map(as_lines, all_rows(tmp_path / "back"))) == sorted(map(as_lines, rows))


def lose_a_rank(dump: Path) -> None:
    for path in dump.rglob("used_data_0.jsonl.gz"):
        path.unlink()


def lose_a_fold(dump: Path) -> None:
    (dump / "used_data_01/used_data_1.jsonl.gz").unlink()


def go_back_elsewhere(dump: Path) -> None:
    path = dump / "used_data_01/used_data_1.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    write_text(path, text.replace('{"iteration": 9,', '{"iteration": 10,'))


def empty(dump: Path) -> None:
    for path in dump.rglob("*.gz"):
        write_text(path, "")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose_a_rank, "found none of rank 0"),
        (lose_a_fold, r"found no used_data_01/used_data_1\.jsonl\.gz"),
        (go_back_elsewhere, r"rank 0 of the dump went back to iterations \[9\], rank 1 to \[10\]"),
        (empty, "expected lines with an iteration"),
    ],
)
def test_dumps_that_are_refused(
    spoil: Callable[[Path], None], message: str, dump: Path, tokenizer: Path, tmp_path: Path
) -> None:
    spoil(dump)
    with pytest.raises(InputError, match=message):
        import_dump(dump, tmp_path / "run", tokenizer=tokenizer)
    assert not (tmp_path / "run").exists()


def full_disk(_: RankWriter) -> None:
    raise OSError("the disk is full")


def test_what_else_is_refused(dump: Path, tokenizer: Path, tmp_path: Path, text_run: TextRun) -> None:
    with pytest.raises(RunError, match="holds an export already"):
        import_dump(dump, text_run.run_dir, tokenizer=tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankWriter, "close", full_disk)
        with pytest.raises(OSError, match="the disk is full"):
            import_dump(dump, tmp_path / "run", tokenizer=tokenizer)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="expected --tokenizer"):
        import_dump(dump, tmp_path / "run")
    with pytest.raises(InputError, match="expected more than 1199"):
        import_dump(dump, tmp_path / "run", tokenizer=tokenizer, vocab_size=100)
    with pytest.raises(InputError, match=r"expected used_data_00/used_data_0\.jsonl\.gz"):
        import_dump(tmp_path, tmp_path / "run", tokenizer=tokenizer)
