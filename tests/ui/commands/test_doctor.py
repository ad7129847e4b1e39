"""`kiseki doctor` finds what is wrong with a run, and says the way out of it."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import update_index
from indexer.selection.tombstones import TombstoneFile
from indexer.storage.paths import IndexPaths
from tests.conftest import TextRun
from tests.support.export_maker import MadeStep, make_attempt
from tests.ui.test_cli import kiseki
from train_hooks.export_format.writing.attempts import RunSpec
from ui.doctor import Check, check_installation, check_run


@pytest.fixture
def run_dir(text_run: TextRun, tmp_path: Path) -> Path:
    shutil.copytree(text_run.run_dir / "export", tmp_path / "run" / "export")
    return tmp_path / "run"


def verdicts(run_dir: Path) -> dict[str, Check]:
    return {check.name: check for check in check_run(run_dir)}


def test_a_sound_run_on_a_sound_machine(text_run: TextRun) -> None:
    code, out, err = kiseki("doctor", text_run.run_dir)
    assert (code, err) == (0, "") and "wrong" not in out
    assert "span search: a small index was built and searched" in out and "trace: the beginning of text/a1/s" in out
    assert all(line.startswith(("fine", "note", "        →")) for line in out.splitlines())
    code, out, _ = kiseki("doctor", "--json")
    assert code == 0 and {check["name"] for check in json.loads(out)} >= {"python", "packages", "torch", "machine"}


def test_a_package_that_another_distribution_shares_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"ui": ["kiseki", "some-project"], "indexer": ["kiseki"], "numpy": ["numpy"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: owners)
    found = {check.name: check for check in check_installation()}["own packages"]
    assert found.verdict == "wrong" and "`ui` by some-project" in found.found and "indexer" not in found.found


def test_what_is_missing_is_said_with_the_way_out(run_dir: Path, tmp_path: Path) -> None:
    (nothing,) = check_run(tmp_path / "elsewhere")
    assert nothing.verdict == "wrong" and "run.json" in nothing.do
    found = verdicts(run_dir)
    assert found["index"].verdict == "note" and found["index"].do == f"kiseki index {run_dir}"
    assert "trace" not in found
    update_index(run_dir)
    assert {check.verdict for check in verdicts(run_dir).values()} == {"fine"}
    (run_dir / "export" / "run_secret.hex").chmod(0o644)
    assert "chmod 600" in verdicts(run_dir)["secret"].do
    (run_dir / "export" / "run_secret.hex").unlink()
    assert verdicts(run_dir)["secret"].verdict == "note"
    (run_dir / "export" / "tokenizer" / "tokenizer.json").write_text("{}")
    assert verdicts(run_dir)["tokenizer"].verdict == "wrong"


def test_damage_is_wrong_and_ends_with_1(text_run: TextRun, run_dir: Path) -> None:
    update_index(run_dir)
    tombstones = TombstoneFile(IndexPaths(run_dir))
    source, document_id = next(iter(text_run.documents))
    tombstones.add(reason="asked", source=source, document_id=document_id)
    assert verdicts(run_dir)["tombstones"].do.endswith("kiseki tombstone finish")
    assert verdicts(run_dir)["trace"].verdict == "fine"
    path = IndexPaths(run_dir).tombstones
    path.write_bytes(path.read_bytes().replace(b"asked", b"other"))
    spans = next(run_dir.glob("index/shards/*/spans.bin"))
    spans.write_bytes(spans.read_bytes()[:-4096])
    found = verdicts(run_dir)
    assert found["tombstones"].verdict == found["index"].verdict == "wrong"
    assert "kiseki index --verify" in found["index"].found
    assert kiseki("doctor", run_dir)[0] == 1


def test_steps_that_are_not_indexed_and_a_crash(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    spec = RunSpec(sequence_length=4, vocab_size=100, run_id="r", config={})
    steps = [MadeStep(microbatches={0: [np.full((1, 4), step)]}) for step in range(3)]
    make_attempt(run_dir, spec, steps[:2])
    update_index(run_dir)
    make_attempt(run_dir, spec, steps, close=False)
    found = verdicts(run_dir)
    assert "3 committed steps are not in it" in found["index"].found and "--follow" in found["index"].do
    assert found["export"].verdict == "note" and "attempt 2 ended without closing" in found["export"].found
    assert found["tokenizer"].verdict == "note"


def test_few_open_files_are_noted(text_run: TextRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    assert "ulimit -n" in verdicts(text_run.run_dir)["index"].do


def test_kernels_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nowhere")
    found = {check.name: check for check in check_installation()}
    assert found["compiled kernels"].verdict == "note" and "NUMBA_CACHE_DIR" in found["compiled kernels"].do
