"""Keys: how they are kept, what lets a request pass, rates, budgets, the read log, and where the server listens."""

import datetime
import json
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from search_api import Limits, Settings, create_app
from search_api.gate import RateLimiter
from search_api.keys import KeyFile
from search_api.problems import Problem
from tests.conftest import TextRun
from tests.search_api.test_api import check_problem
from train_hooks.export_format.errors import DamageError, InputError
from ui.cli import main


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def run_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """(exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["kiseki", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_a_key_is_kept_without_itself(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    file = KeyFile(path)
    key, token = file.create("auditor", runs=("text",), actions=("trace",))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.rpartition("_")[2] not in path.read_text() and token not in repr(key)
    assert len(token) == 63 and token.startswith(f"kiseki_{key.key_id}_")
    assert file.find(token) == key
    other, _ = file.create("other")
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for bad in ("", wrong, token + "a", token.upper(), token.replace(key.key_id, other.key_id), "é" * 63, "\udcff"):
        assert file.find(bad) is None
    assert file.revoke(key.key_id).revoked_unix_s is not None
    found = file.find(token)
    assert found is not None and not found.in_force(time.time())
    for unknown in (key.key_id, "nothing"):
        with pytest.raises(InputError):
            file.revoke(unknown)
    for scope in ({"actions": ("fly",)}, {"tokens_per_day": -1}):
        with pytest.raises(InputError):
            file.create("x", **scope)
    path.write_bytes(path.read_bytes().replace(b"auditor", b"nobody!"))
    with pytest.raises(DamageError):
        KeyFile(path).find(token)


def test_rates_are_buckets() -> None:
    limiter = RateLimiter()
    waits = [limiter.take("a", 60, 3, now) for now in (0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0)]
    assert [wait == 0 for wait in waits] == [True, True, True, False, False, True, False]
    assert waits[3] == pytest.approx(1.0) and waits[4] == pytest.approx(0.5)
    assert limiter.take("b", 60, 3, 1.0) == 0
    for number in range(20_000):
        limiter.take(str(number), 60, 1, 2.0)
    assert len(limiter._buckets) == 10_000


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    file = KeyFile(tmp_path / "keys.json")
    file.create("first")
    return file


@pytest.fixture
def client(text_run: TextRun, tmp_path: Path, keys: KeyFile) -> Iterator[TestClient]:
    del keys
    settings = Settings(
        run_dirs=(text_run.run_dir,), keys_file=tmp_path / "keys.json", read_log=tmp_path / "reads.jsonl",
        limits=Limits(requests_per_minute=10_000),
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        yield client


COUNT = {"text": "the"}


def test_only_keys_in_force_pass(client: TestClient, keys: KeyFile) -> None:
    response = client.post("/v1/count", json=COUNT)
    check_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    key, token = keys.create("late")
    assert client.post("/v1/count", json=COUNT, headers=bearer(token)).status_code == 200, "at once, without a restart"
    for bad in ("Bearer", "Bearer nonsense", f"Basic {token}", token, f"Bearer {token}x"):
        check_problem(client.post("/v1/count", json=COUNT, headers={"Authorization": bad}), 401, "unauthorized")
    keys.revoke(key.key_id)
    check_problem(client.post("/v1/count", json=COUNT, headers=bearer(token)), 401, "unauthorized")
    _, expired = keys.create("old", expires_unix_s=time.time() - 1)
    check_problem(client.post("/v1/count", json=COUNT, headers=bearer(expired)), 401, "unauthorized")
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_a_key_has_its_rate_and_budget(client: TestClient, keys: KeyFile, tmp_path: Path, text_run: TextRun) -> None:
    _, slow = keys.create("slow", requests_per_minute=2)
    statuses = [client.post("/v1/count", json=COUNT, headers=bearer(slow)) for _ in range(3)]
    assert [response.status_code for response in statuses] == [200, 200, 429]
    check_problem(statuses[2], 429, "rate")
    assert 1 <= int(statuses[2].headers["retry-after"]) <= 31
    poor_key, poor = keys.create("poor", tokens_per_day=100)
    address = "/v1/sequences/text/a1/s1/r0/m0/q"
    assert client.get(address + "0", headers=bearer(poor)).status_code == 200
    first = client.get(address + "0", headers=bearer(poor))
    unchanged = client.get(address + "0", headers={**bearer(poor), "If-None-Match": first.headers["etag"]})
    check_problem(unchanged, 429, "budget")
    midnight = 86_400 - datetime.datetime.now(datetime.UTC).timestamp() % 86_400
    assert abs(int(unchanged.headers["retry-after"]) - midnight) < 5
    settings = Settings(
        run_dirs=(text_run.run_dir,), keys_file=tmp_path / "keys.json", read_log=tmp_path / "reads.jsonl"
    )
    with TestClient(create_app(settings)) as another:
        check_problem(another.get(address + "1", headers=bearer(poor)), 429, "budget")
    lines = [json.loads(line) for line in (tmp_path / "reads.jsonl").read_text().splitlines()]
    shown = [line["num_tokens"] for line in lines if line["key"] == poor_key.key_id]
    assert shown == [64, 64]


def test_long_work_ends_with_its_budget_and_its_key(client: TestClient, keys: KeyFile, text_run: TextRun) -> None:
    items = [{"text": next(iter(text_run.documents.values()))[:100], "min_length": 3}] * 3
    _, poor = keys.create("poor", tokens_per_day=1)
    lines = client.post("/v1/trace:batch", json={"items": items}, headers=bearer(poor)).text.splitlines()
    found = [json.loads(line) for line in lines]
    assert "trace" in found[0] and [line["problem"]["status"] for line in found[1:]] == [429, 429]
    key, token = keys.create("soon revoked")
    access = client.app.state.service.gate.admit(f"Bearer {token}", "trace", "test")  # type: ignore[attr-defined]
    client.app.state.service.gate.readmit(access)  # type: ignore[attr-defined]
    keys.revoke(key.key_id)
    with pytest.raises(Problem, match="no longer in force"):
        client.app.state.service.gate.readmit(access)  # type: ignore[attr-defined]


def test_the_read_log_says_who_asked_what(client: TestClient, keys: KeyFile, tmp_path: Path) -> None:
    key, token = keys.create("reader")
    headers = {**bearer(token), "X-Request-ID": "abc"}
    client.post("/v1/count", json={"text": "the", "before_step": 9}, headers=headers)
    client.post("/v1/trace:batch", json={"items": [{"text": "one"}, {"text": "two"}]}, headers=headers)
    client.post("/v1/count", json={"text": ""}, headers=headers)
    path = tmp_path / "reads.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["key"], line["request_id"], line["run"]) for line in lines] == [(key.key_id, "abc", "text")] * 3
    assert json.loads(lines[0]["question"]) == {"text": "the", "before_step": 9}
    assert [(line["action"], json.loads(line["question"])["text"]) for line in lines[1:]] == [
        ("trace", "one"),
        ("trace", "two"),
    ]
    assert token not in path.read_text()


def test_commands(
    tmp_path: Path, text_run: TextRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"

    def run(*arguments: object) -> Any:
        return run_command(capsys, monkeypatch, *arguments)

    code, token, err = run(
        "keys", "create", path, "--name", "auditor", "--run", "text", "--action", "trace", "--source", "web",
        "--days", "2", "--tokens-per-day", "1000",
    )  # fmt: skip
    key = KeyFile(path).find(token.strip())
    assert code == 0 and key is not None and key.key_id in err
    assert (key.runs, key.actions, key.sources, key.tokens_per_day) == (("text",), ("trace",), ("web",), 1000)
    assert key.in_force(time.time() + 86_400) and not key.in_force(time.time() + 3 * 86_400)
    code, out, _ = run("keys", "list", path)
    assert code == 0 and "in force" in out and "runs text; actions trace; sources web" in out and token not in out
    assert run("keys", "revoke", path, key.key_id)[0] == 0
    assert json.loads(run("keys", "list", path, "--json")[1])[0]["in_force"] is False
    for arguments, expected in (
        (["keys", "list", tmp_path / "none.json"], "found none"),
        (["keys", "revoke", path, "nothing"], "keys list"),
        (["keys", "create", path, "--name", " "], "name"),
        (["serve", text_run.run_dir, "--host", "0.0.0.0", "--port", "0"], "--keys"),
        (["serve", text_run.run_dir, "--keys", tmp_path / "none.json", "--api-only"], "does not read"),
        (["serve", text_run.run_dir, "--keys", path], "KISEKI_API_KEY"),
        (["serve", text_run.run_dir, "--limit", "deadline_s"], "NAME=VALUE"),
        (["serve", text_run.run_dir, "--limit", "nothing=1"], "deadline_s"),
        (["serve", text_run.run_dir, "--limit", "deadline_s=-1"], "above 0"),
        (["serve", text_run.run_dir, "--limit", "body_bytes=x"], "number"),
    ):
        code, out, err = run(*arguments)
        assert code in (1, 2) and out == "" and expected in err and len(err.strip().splitlines()) == 1, err


def test_tombstone_commands(
    tmp_path: Path, text_run: TextRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    run_dir = tmp_path / "run"
    shutil.copytree(text_run.run_dir, run_dir)
    (source, document_id), text = next(iter(text_run.documents.items()))

    def run(*arguments: object) -> Any:
        return run_command(capsys, monkeypatch, *arguments)

    with TestClient(create_app(Settings(run_dirs=(run_dir,)))) as client:
        body = {"text": text[:120], "min_length": 5}
        shown = client.post("/v1/trace", json=body).json()
        assert document_id in json.dumps(shown)
        code, out, _ = run("tombstone", "add", run_dir, "--document", source, document_id, "--reason", "asked to")
        assert code == 0 and out.startswith("tombstone 1: document")
        assert document_id not in json.dumps(client.post("/v1/trace", json=body).json())
        address = "text/a1/s9/r1/m0/q0"
        place = f"/v1/sequences/{address}"
        tag = client.get(place).headers["etag"]
        assert run("tombstone", "add", run_dir, "--address", address, "--tokens", "3:5", "--reason", "x")[0] == 0
        sequence = client.get(place, headers={"If-None-Match": tag}).json()
        assert sequence["redacted"] and sequence["token_ids"][2:6].count(None) >= 2
        code, out, _ = run("sequence", run_dir, address, "--json")
        assert json.loads(out)["token_ids"] == sequence["token_ids"]
        assert run("tombstone", "lift", run_dir, 1, "--reason", "mistaken")[0] == 0
        again = client.post("/v1/trace", json=body).json()
        assert [span["count"] for span in again["spans"]] == [span["count"] for span in shown["spans"]]
    listed = json.loads(run("tombstone", "list", run_dir, "--json")[1])
    assert [(item["number"], item["lift_reason"]) for item in listed] == [(1, "mistaken"), (2, None)]
    for arguments, expected in (
        (["--reason", "x"], "expected a document"),
        (["--address", "text/a1/s999/r0/m0/q0", "--reason", "x"], "holds no sequence"),
        (["--address", address, "--tokens", "5", "--reason", "x"], "A:B"),
        (["--address", address, "--reason", ""], "reason"),
    ):
        code, out, err = run("tombstone", "add", run_dir, *arguments)
        assert code == 2 and expected in err
