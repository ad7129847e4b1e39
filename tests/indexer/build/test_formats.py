"""One lineage of attempts of several export formats: each is checked by its own leaves, and asked in the same way."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from indexer.build.update import IndexOptions, update_index
from indexer.documents.history import document_history
from indexer.reader import IndexReader
from indexer.search.search import search
from indexer.selection.rows import Selection
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.storage.shard import SHARD_FORMAT, ShardDamage
from indexer.trace.trace import TraceOptions, trace
from search_api import Settings, create_app
from tests.support.export_maker import all_rows
from tests.support.make_kept_exports import EXPORTS, LENGTH, RUN_ID, committed_step
from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Evidence, EvidenceDefaults, Matched, Row
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import ResumeToken, claim_attempt
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.row_builder import RowBuilder

OLD = ("1-growing", "1-sealed", "1-compacted", "2-sealed", "2-taken-down")


def go_on(run_dir: Path) -> None:
    """An attempt of format 3 that resumes from step 2 of attempt 1, or from step 3 of attempt 2 where there is one.

    It is trained once more on what steps 1 to 3 of attempt 1 had.
    """
    run, file_system = RunReader(run_dir), OsFileSystem()
    repair(run_dir, assume_dead=True)
    parent = len(run.attempts())
    attempt = claim_attempt(
        file_system, run_dir, run.info, num_writers=2, config={},
        resume=ResumeToken(run_id=RUN_ID, attempt=parent, global_step=parent + 1),
        defaults=EvidenceDefaults(evidence=Evidence.FORWARD, tensor_evidence=Evidence.LOADER, matched=Matched.WHOLE),
    )  # fmt: skip
    last = attempt.resume_step + 3
    for dp_rank in range(2):
        writer = RankWriter(file_system, run.paths.attempt_dir(attempt.attempt), run.info, attempt, dp_rank)
        builder = RowBuilder(run.info, attempt, dp_rank, run.secret())
        for step in range(attempt.resume_step + 1, last + 1):
            made = committed_step(3, step - attempt.resume_step, dp_rank, shorter_rows=run.info.shorter_rows)
            records = tuple(dataclasses.replace(record, global_step=step) for record in made.records)
            writer.append([builder.frame(dataclasses.replace(made, global_step=step, records=records))])
        writer.close()
    write_barrier(file_system, run.paths, attempt, last)


@pytest.fixture(params=OLD)
def mixed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An indexed run whose last attempt is of format 3, and those before it of format 1 or 2."""
    run_dir = tmp_path / "run"
    shutil.copytree(EXPORTS / request.param, run_dir)
    go_on(run_dir)
    update_index(run_dir, IndexOptions(shard_tokens=2 * LENGTH))
    return run_dir


def known(run_dir: Path, row: Row) -> dict[str, Any]:
    """What the row says of itself, with the attempt's defaults."""
    info = RunReader(run_dir).attempt(row.address.attempt).info
    return {
        "evidence": row.evidence or info.default_evidence,
        "matched": row.matched or info.default_matched,
        "relation": row.relation,
    }


def test_each_attempt_is_checked_by_its_own_leaves(mixed: Path) -> None:
    reader, secret = IndexReader.open(mixed), RunReader(mixed).secret()
    version_of = {attempt.info.attempt: attempt.info.format_version for attempt in RunReader(mixed).attempts()}
    newest = max(version_of)
    old_version = RunReader(mixed).info.format_version
    assert set(version_of.values()) == {old_version, 3} and version_of[newest] == 3
    assert {shard.info.attempt for shard in reader.shards} == set(version_of)
    num_checked = 0
    for shard in reader.shards:
        assert shard.info.export_version == version_of[shard.info.attempt]
        commitments = shard.sequences.column("tensors_commitment").to_pylist()
        for ordinal in range(shard.info.num_sequences):
            shard.check_sequence(ordinal, secret)
        other = dataclasses.replace(shard.info, export_version=3 if shard.info.export_version < 3 else old_version)
        shard.info, shard._checked = other, set()
        for ordinal, commitment in enumerate(commitments):
            if commitment is not None:  # of rows that lost tokens the index keeps none
                num_checked += 1
                with pytest.raises(ShardDamage, match="does not match its leaf"):
                    shard.check_sequence(ordinal, secret)
    rows = all_rows(mixed)
    num_removed = sum(record.encoding == "removed" for row in rows for record in row.tensors)
    assert num_checked == len(rows) - num_removed


def test_the_catalog_says_what_is_known(mixed: Path) -> None:
    reader = IndexReader.open(mixed)
    found = {row["address"]: row for row in reader.sql("SELECT address, evidence, matched, relation FROM sequences")}
    rows = all_rows(mixed)
    assert set(found) == {str(row.address) for row in rows}
    for row in rows:
        assert found[str(row.address)] == {"address": str(row.address), **known(mixed, row)}
    attempts = reader.sql("SELECT attempt, export_format_version, barrier_step, last_step FROM attempts ORDER BY 1")
    infos = [attempt.info for attempt in RunReader(mixed).attempts()]
    assert [row["export_format_version"] for row in attempts] == [info.format_version for info in infos]
    assert [row["barrier_step"] for row in attempts] == [None] * (len(infos) - 1) + [infos[-1].resume_step + 3]
    told = {row["evidence"] for row in found.values()}
    assert told == {None, "forward", "loader"}, "rows of all kinds were looked at"


def test_one_trace_finds_rows_of_both_formats(mixed: Path) -> None:
    """The text of a row of format 3 that an older attempt was trained on as well."""
    reader = IndexReader.open(mixed)
    newest = max(row.address.attempt for row in all_rows(mixed))
    wanted = f"{RUN_ID}/a{newest}/s{reader.canonical[newest].first_step}/r1/m0/q0"
    again = next(row for row in all_rows(mixed) if str(row.address) == wanted)
    tokens = again.tokens[again.segments[0].start : again.segments[0].start + again.segments[0].length]
    found = trace(reader, token_ids=tokens.tolist(), options=TraceOptions(num_hits=100, selection=Selection()))
    hits = [hit.address for span in found.spans for hit in span.hits]
    assert {address.attempt for address in hits} >= {1, newest}
    for address in hits:
        interval = reader.canonical[address.attempt]
        assert interval.first_step <= address.global_step <= (interval.last_step or address.global_step)
        reader.sequence(address)


def test_the_api_answers_for_every_sequence(mixed: Path) -> None:
    rows = all_rows(mixed)
    with TestClient(create_app(Settings(run_dirs=(mixed,)))) as client:
        for row in rows:
            response = client.get(f"/v1/sequences/{row.address}")
            assert response.status_code == 200, response.text
            found = response.json()
            assert found["token_ids"] == row.tokens.tolist() and found["leaf"] == row.leaf.hex()
            assert {name: found[name] for name in ("evidence", "matched", "relation")} == known(mixed, row)
        run = client.get(f"/v1/runs/{RUN_ID}").json()
    expected = [known(mixed, row) for row in rows]
    shares = {name: sum(item["evidence"] == name for item in expected) for name in ("forward", "loader", "declared")}
    shares |= {name: sum(item["matched"] == name for item in expected) for name in ("whole", "slice", "count")}
    assert run["shares"] == {"num_rows": len(rows), **shares}
    assert 0 < shares["forward"] < len(rows) and shares["slice"] > 0
    versions = [attempt.info.format_version for attempt in RunReader(mixed).attempts()]
    assert [attempt["export_format_version"] for attempt in run["attempts"]] == versions


def test_answers_name_no_loss_that_they_did_not_read(mixed: Path) -> None:
    """The loss of a segment is in the catalog alone. A null in its place would say that it has none."""
    reader = IndexReader.open(mixed)
    row = all_rows(mixed)[-1]
    tokens, segment = row.tokens[row.segments[0].start :][:20].tolist(), row.segments[0]
    (shard,) = {shard.info.name: shard for shard in reader.shards if shard.ordinal_of(row.address) is not None}.values()
    assert set(shard.segments.column("loss").to_pylist()) > {None}, "the index has some"
    traced = trace(reader, token_ids=tokens).to_json()
    searched = search(reader, f"ids:[{' '.join(map(str, tokens))}]").to_json()
    history = document_history(reader, segment.source, segment.document_id, selection=Selection()).to_json()
    assert traced["spans"][0]["hits"] and searched["hits"] and history["exposures"]
    assert '"loss"' not in json.dumps([traced, searched, history])


def test_shares_count_what_may_be_seen(mixed: Path) -> None:
    """A hidden row is in no share."""
    reader, rows = IndexReader.open(mixed), all_rows(mixed)
    hidden = frozenset(row.address for row in rows[::3])
    shares = reader.evidence_shares(Visibility(hidden_rows=hidden))
    expected = [known(mixed, row) for row in rows if row.address not in hidden]
    assert shares.num_rows == len(expected) == reader.visible_sizes(Visibility(hidden_rows=hidden))[0]
    assert shares.forward == sum(item["evidence"] == "forward" for item in expected)
    assert shares.whole == sum(item["matched"] == "whole" for item in expected)
    everything = reader.evidence_shares(EVERYTHING)
    assert everything.num_rows == len(rows) and everything.forward > shares.forward > 0


def test_the_export_holds(mixed: Path) -> None:
    report = verify(mixed)
    assert report.exit_code != 1, report.findings
    assert report.shares.num_rows >= len(all_rows(mixed))


def test_a_shard_of_an_older_kiseki_that_no_generation_names_is_built_again(tmp_path: Path) -> None:
    """It died before it published its first generation: the directory is whole, and of another format."""
    shutil.copytree(EXPORTS / "3-sealed", tmp_path / "run")
    update_index(tmp_path / "run")
    index = tmp_path / "run" / "index"
    for path in index.iterdir():
        if path.name != "shards":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in index.glob("shards/*/shard.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(SHARD_FORMAT, "kiseki-shard-v3"), encoding="utf-8")

    assert update_index(tmp_path / "run").published
    assert len(IndexReader.open(tmp_path / "run").shards) == len(list(index.glob("shards/a*")))
