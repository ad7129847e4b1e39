"""Generations come and go under a server that is asked all the time; several runs; damage."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.build.update import IndexOptions, update_index
from search_api import Limits, Settings, create_app
from tests.conftest import TextRun
from tests.search_api.test_api import check_problem
from tests.support.export_maker import MadeStep, make_attempt
from tests.support.live_server import live_server
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

LENGTH = 16
GRAM = [7, 7, 7]


def add_steps(run: Path, num: int, last_step: int) -> None:
    """`num` more steps, of two rows each that hold GRAM once."""
    spec = RunSpec(sequence_length=LENGTH, vocab_size=10, run_id="numbers", config={})
    rows = np.zeros((2, LENGTH), np.int64)
    rows[:, 3:6] = GRAM
    resume = ResumeToken(run_id="numbers", attempt=_attempts(run), global_step=last_step) if last_step else None
    make_attempt(run, spec, [MadeStep(microbatches={0: [rows]})] * num, resume=resume)
    update_index(run, IndexOptions(shard_tokens=LENGTH * 8))


def _attempts(run: Path) -> int:
    return len(list((run / "export" / "attempts").iterdir()))


def test_ten_generations_without_a_dropped_request(tmp_path: Path) -> None:
    run = tmp_path / "run"
    add_steps(run, 2, 0)
    limits = Limits(reload_interval_s=0.05)
    failed: list[str] = []
    counts: list[tuple[int, int]] = []
    with live_server(Settings(run_dirs=(run,), limits=limits)) as url:
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=10) as client:
                while not stop.is_set():
                    response = client.post("/v1/count", json={"token_ids": GRAM})
                    answer = response.json()
                    if response.status_code == 200:
                        counts.append((answer["generation"], answer["count"]))
                    else:
                        failed.append(response.text)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(1, 11):
            add_steps(run, 2, 2 * number)
        deadline = time.monotonic() + 10
        while counts[-1][1] != 44:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert set(counts) <= {(generation, 4 * generation) for generation in range(1, 12)}, "each is whole"
    assert len(set(counts)) > 3


def test_cursors_stay_on_their_generation_for_a_while(tmp_path: Path) -> None:
    run = tmp_path / "run"
    add_steps(run, 3, 0)
    limits = Limits(reload_interval_s=0.05, generation_keep_s=0.5)
    with TestClient(create_app(Settings(run_dirs=(run,), limits=limits))) as client:
        body: dict[str, Any] = {"token_ids": GRAM, "limit": 4}
        first = client.post("/v1/hits", json=body).json()
        add_steps(run, 2, 3)
        deadline = time.monotonic() + 10
        while client.post("/v1/count", json={"token_ids": GRAM}).json()["generation"] == first["generation"]:
            assert time.monotonic() < deadline
        second = client.post("/v1/hits", json={**body, "cursor": first["next_cursor"]}).json()
        assert second["generation"] == first["generation"] and len(second["hits"]) == 2 and not second["next_cursor"]
        time.sleep(0.8)
        check_problem(client.post("/v1/hits", json={**body, "cursor": first["next_cursor"]}), 410, "generation-expired")


def test_several_runs(tmp_path: Path, text_run: TextRun) -> None:
    run = tmp_path / "run"
    add_steps(run, 2, 0)
    with TestClient(create_app(Settings(run_dirs=(run, text_run.run_dir)))) as client:
        assert [item["run_id"] for item in client.get("/v1/runs").json()["runs"]] == ["numbers", "text"]
        assert "numbers, text" in check_problem(client.post("/v1/count", json={"token_ids": GRAM}), 400, "query")
        assert client.post("/v1/count", json={"token_ids": GRAM, "run": "numbers"}).json()["count"] == 4
        sequence = client.get("/v1/sequences/numbers/a1/s1/r0/m0/q0").json()
        assert sequence["text"] is None and sequence["token_ids"][3:6] == GRAM
        check_problem(client.post("/v1/count", json={"text": "a", "run": "numbers"}), 404, "run")
        mixed = {"addresses": ["numbers/a1/s1/r0/m0/q0", "text/a1/s1/r0/m0/q0"]}
        check_problem(client.post("/v1/sequences:batchGet", json=mixed), 400, "query")
    with pytest.raises(InputError, match="different names"):
        create_app(Settings(run_dirs=(run, run)))


def test_damage_is_said_without_paths(tmp_path: Path, text_run: TextRun) -> None:
    run = tmp_path / "copy"
    shutil.copytree(text_run.run_dir, run)
    shards = sorted((run / "index" / "shards").iterdir())
    with TestClient(create_app(Settings(run_dirs=(run,)))) as client:
        whole = client.post("/v1/count", json={"text": "the"}).json()
        spans = shards[0] / "spans.bin"
        data = bytearray(spans.read_bytes())
        data[:4096] = bytes(4096)
        spans.unlink()
        spans.write_bytes(data)
    with TestClient(create_app(Settings(run_dirs=(run,)))) as client:
        answer = client.post("/v1/count", json={"text": "the"}).json()
        assert answer["shards_failed"] == 1 and answer["count_relation"] == "gte" and answer["count"] < whole["count"]
        assert answer["failures"] == [f"shard {shards[0].name} is damaged"]
        traced = client.post("/v1/trace", json={"text": next(iter(text_run.documents.values()))[:80]}).json()
        assert traced["count_relation"] == "gte" and traced["failures"] == answer["failures"]
        assert str(tmp_path) not in client.post("/v1/trace", json={"text": "a b c"}).text
        check_problem(client.get("/readyz"), 503, "incomplete")
