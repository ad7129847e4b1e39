"""`kiseki upgrade`: what it says of runs of each format, and of an index that an older kiseki built."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from indexer.build.update import IndexOptions, update_index
from indexer.build.upgrade import INDEX_TOKENS_PER_S, LACKS, WayBack, check_upgrade
from indexer.reader import IndexReader
from indexer.storage.generations import Generation, publish, published, write_generation
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import SHARD_FORMAT, manifest_sha256
from tests.support.make_kept_exports import EXPORTS
from tests.train_hooks.export_format.test_formats_together import continue_run, rewrite_json
from tests.ui.test_cli import run_here
from train_hooks.export_format.errors import DamageError, IncompleteError, RunError
from train_hooks.export_format.paths import ExportPaths

OLD_SHARD = "kiseki-shard-v3"
Kiseki = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kiseki(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kiseki:
    return lambda *arguments: run_here(capsys, monkeypatch, *arguments)


def files_of(run_dir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def with_index(name: str, run_dir: Path) -> Path:
    """A kept export with an index of two shards or more."""
    shutil.copytree(EXPORTS / name, run_dir)
    update_index(run_dir, IndexOptions(shard_tokens=1200))
    return run_dir


def publish_again(run_dir: Path, change: Callable[[Path], None], num_shards: int) -> list[str]:
    """Change the manifests of the first shards, and publish a generation that names them: the names of these shards."""
    paths = IndexPaths(run_dir)
    before = published(paths)
    assert before is not None
    changed = sorted(before.shards)[:num_shards]
    for name in changed:
        change(paths.shard_dir(name) / "shard.json")
    shards = {name: manifest_sha256(paths.shard_dir(name)) for name in before.shards}
    generation: Generation = dataclasses.replace(before, shards=shards)
    write_generation(paths, generation)
    publish(paths, generation)
    return changed


def make_old(manifest: Path) -> None:
    """As kiseki 0.1.0 wrote it."""
    document = json.loads(manifest.read_bytes())
    del document["export_version"]
    manifest.write_text(json.dumps(document | {"format": OLD_SHARD}), encoding="utf-8")


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_of_an_older_format(version: int, kiseki: Kiseki) -> None:
    run_dir = EXPORTS / f"{version}-sealed"
    before = files_of(run_dir)
    code, out, err = kiseki("upgrade", "--check", run_dir)
    assert (code, err) == (0, "") and files_of(run_dir) == before
    assert f"begun in format {version}; new attempts will be of format 3" in out
    assert "attempts 1, 2 can be read as before" in out
    assert all(f"{name}: {meaning}" in out for name, meaning in LACKS.items())
    assert "no generation is published" in out and "can still read this run" in out


def test_a_run_that_was_continued(tmp_path: Path, kiseki: Kiseki) -> None:
    run_dir = continue_run(tmp_path / "run", 1).run_dir
    code, out, _ = kiseki("upgrade", "--check", run_dir)
    assert code == 0 and "only without attempt 3" in out and "attempts 1, 2 can be read as before" in out
    document = json.loads(kiseki("upgrade", "--check", run_dir, "--json")[1])
    assert [item["format_version"] for item in document["attempts"]] == [1, 1, 3]
    assert [item["lacks"] for item in document["attempts"]] == [[*LACKS], [*LACKS], []]
    assert (document["run_format"], document["next_attempt_format"], document["exit_code"]) == (1, 3, 0)
    assert document["way_back"] == "without new attempts"


def test_a_run_of_todays_format_has_nothing_to_do(tmp_path: Path, kiseki: Kiseki) -> None:
    run_dir = with_index("3-sealed", tmp_path / "run")
    code, out, _ = kiseki("upgrade", "--check", run_dir)
    assert code == 0 and "cannot give" not in out
    assert f"all of today's format {SHARD_FORMAT}" in out and "0.1.0 cannot read this run" in out
    found = check_upgrade(run_dir)
    assert (found.to_rebuild, found.num_tokens, found.way_back) == ((), 0, WayBack.NOTHING)
    assert found.generation == 1 and found.num_shards > 1


def test_shards_of_an_older_format_are_named_and_then_built_again(tmp_path: Path, kiseki: Kiseki) -> None:
    run_dir = with_index("1-sealed", tmp_path / "run")
    whole = sum(shard.info.num_tokens for shard in IndexReader.open(run_dir).shards)
    changed = publish_again(run_dir, make_old, 100)
    with pytest.raises(IncompleteError, match="another version"):  # as the command says
        IndexReader.open(run_dir)
    before = files_of(run_dir)
    code, out, _ = kiseki("upgrade", "--check", run_dir)
    assert code == 3 and files_of(run_dir) == before
    assert all(f"{name}: format {OLD_SHARD}" in out for name in changed)
    assert f"{whole:,} tokens: about 1 s with one job. This is an estimate, at 1,000,000 tokens a second." in out
    assert "trace, search and SQL refuse the index" in out
    document = json.loads(kiseki("upgrade", "--check", run_dir, "--json")[1])
    assert [shard["name"] for shard in document["to_rebuild"]] == changed
    assert (document["num_tokens"], document["exit_code"]) == (whole, 3)
    assert document["estimated_s"] == whole / INDEX_TOKENS_PER_S
    assert kiseki("index", run_dir)[0] == 0
    assert kiseki("upgrade", "--check", run_dir)[0] == 0
    assert sum(shard.info.num_tokens for shard in IndexReader.open(run_dir).shards) == whole


def test_one_old_shard_is_enough(tmp_path: Path) -> None:
    run_dir = with_index("2-compacted", tmp_path / "run")
    (name,) = publish_again(run_dir, make_old, 1)
    found = check_upgrade(run_dir)
    assert [shard.name for shard in found.to_rebuild] == [name] and found.num_shards > 1
    assert found.exit_code == 3


def test_a_damaged_manifest_is_of_unknown_size(tmp_path: Path, kiseki: Kiseki) -> None:
    run_dir = with_index("1-sealed", tmp_path / "run")
    manifest = sorted((run_dir / "index" / "shards").glob("*/shard.json"))[0]
    manifest.write_bytes(manifest.read_bytes().replace(b'"num_tokens": ', b'"num_tokens": 9'))
    code, out, _ = kiseki("upgrade", "--check", run_dir)
    assert code == 3 and "its manifest is damaged" in out
    assert "0 tokens, and 1 shard of unknown size" in out and "refuse the index" not in out


def test_many_shards_are_not_all_listed(tmp_path: Path, kiseki: Kiseki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.terminal.upgrade.SHOWN_SHARDS", 1)
    run_dir = with_index("1-sealed", tmp_path / "run")
    changed = publish_again(run_dir, make_old, 100)
    out = kiseki("upgrade", "--check", run_dir)[1]
    assert out.count(OLD_SHARD) == 1 and f"… and {len(changed) - 1} more, which --json lists" in out


def test_without_check_it_says_that_there_is_nothing_to_do(kiseki: Kiseki) -> None:
    run_dir = EXPORTS / "1-sealed"
    code, out, _ = kiseki("upgrade", run_dir)
    assert code == 0 and "nothing to upgrade in the export" in out
    assert f"`kiseki index {run_dir}`" in out and f"`kiseki upgrade --check {run_dir}`" in out
    code, _, err = kiseki("upgrade", run_dir, "--json")
    assert code == 2 and "expected --check beside it" in err


def test_what_cannot_be_read_is_one_line(tmp_path: Path, kiseki: Kiseki) -> None:
    code, out, err = kiseki("upgrade", "--check", tmp_path)
    assert (code, out) == (2, "") and "is not a run directory" in err and len(err.splitlines()) == 1
    shutil.copytree(EXPORTS / "3-sealed", tmp_path / "run")
    path = ExportPaths(tmp_path / "run").attempt_json(2)
    rewrite_json(path, format="kiseki-attempt-v4; needs kiseki 9")
    code, out, err = kiseki("upgrade", "--check", tmp_path / "run")
    assert (code, out) == (2, "") and "needs kiseki 9" in err and len(err.splitlines()) == 1
    path.write_bytes(path.read_bytes().replace(b'"attempt": 2', b'"attempt": 3'))
    assert kiseki("upgrade", "--check", tmp_path / "run")[0] == 1


def test_an_index_of_another_run_or_a_damaged_generation_is_refused(tmp_path: Path) -> None:
    run_dir = with_index("1-sealed", tmp_path / "run")
    paths = IndexPaths(run_dir)
    before = published(paths)
    assert before is not None
    write_generation(paths, dataclasses.replace(before, run_id="another"))
    with pytest.raises(DamageError, match="does not match the SHA-256"):
        check_upgrade(run_dir)
    publish(paths, before)
    with pytest.raises(RunError, match="is of run another"):
        check_upgrade(run_dir)


def test_the_way_back_is_documented() -> None:
    """What is printed points to a page that exists, and that says what each exit code means."""
    page = (Path(__file__).parents[3] / "docs" / "upgrading.md").read_text(encoding="utf-8")
    assert "needs kiseki 0.2.0 or newer" in page
    assert {"0", "1", "2", "3"} <= set(re.findall(r"^\| (\d) \|", page, re.MULTILINE))
    assert all(f"**{name}**" in page for name in LACKS)
