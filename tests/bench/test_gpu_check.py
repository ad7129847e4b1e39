"""The check on a GPU, tried without one: what it runs emulated, that its checks can fail, that a dead process is told."""

import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_check
from bench.gpu_check import running
from bench.gpu_check.checks import DEVICE, GROUPS, HOST, Check, CheckFailed, Found, Setting
from bench.gpu_check.running import SKIPPED, line, main, run_check, supervise
from bench.gpu_check.trainings import attach, compare, fetched
from bench.gpu_check.waiting import FEEDS, never_waits
from train_hooks import ExportHook
from train_hooks.export_format.records import Evidence

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def test_emulated_every_check_passes_or_says_that_it_needs_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--emulate", "--json", str(tmp_path / "result.json")])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().out
    assert not end.value.code, printed
    found = json.loads(printed.splitlines()[-1])
    assert found == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    outcomes = {(result["group"], result["name"]): result["outcome"] for result in found["results"]}
    assert outcomes == {
        (group, check.name): "not run" if check.cuda else "passed" for group, of in GROUPS.items() for check in of
    }
    assert found["machine"]["device"].endswith("no CUDA")
    figures = {name: value for result in found["results"] for name, value in result["figures"].items()}
    assert figures[f"{DEVICE}: step, median ms"] > 0
    assert figures[f"{HOST}: 0 pending, median µs a step"] > 0
    for name in figures:
        assert name in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_nothing_is_checked_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{SKIPPED}\n")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--require"])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert capsys.readouterr() == ("", f"{SKIPPED}\n")


def test_every_group_has_a_process_and_every_check_a_name_in_the_documentation() -> None:
    assert sorted(group for groups in running.PROCESSES for group in groups) == sorted(GROUPS)
    names = [(group, check.name) for group, of in GROUPS.items() for check in of]
    assert len(names) == len(set(names))
    documentation = re.sub(r"\s+", " ", gpu_check.__doc__ or "")
    for group, name in names:
        [described] = re.findall(rf"- {group}: (.*?)(?= - | Groups of checks)", documentation)
        assert re.search(rf"(^|; ){re.escape(name.partition(':')[0])}", described), (group, name)


def test_no_module_hides_one_of_the_standard_library() -> None:
    """`python bench/gpu_check` has its folder first on the import path."""
    names = {path.stem for path in Path(running.__file__).parent.glob("*.py")}
    assert "running" in names
    assert not names & sys.stdlib_module_names


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(device=CPU, directory=tmp_path)


def exported(setting: Setting) -> list[dict[str, torch.Tensor]]:
    """What was fed in two steps of an export."""
    model = setting.gpt()
    fed = []
    source, _ = fetched(setting, DEVICE, 2)
    with attach(setting, model) as hook:
        for step, batch in enumerate(source(hook), 1):
            model(**batch).backward()
            fed.append({name: tensor.clone() for name, tensor in batch.items()})
            hook.commit(step)
    return fed


def test_an_export_that_differs_in_anything_is_found(setting: Setting) -> None:
    fed = exported(setting)
    run_dir = setting.directory / "run"
    compare(run_dir, fed)
    with pytest.raises(CheckFailed, match="expected 1 micro-batches in the export, found 2"):
        compare(run_dir, fed[:1])
    with pytest.raises(CheckFailed, match=r"micro-batch 0, input_ids: \d+ of 64 values differ"):
        compare(run_dir, fed[::-1])
    with pytest.raises(
        CheckFailed, match=r"micro-batch 0: expected .*'labels': 'torch.int32 \[4, 16\]'}, found .*int64"
    ):
        compare(run_dir, [{**fed[0], "labels": fed[0]["labels"].int()}, fed[1]])
    with pytest.raises(CheckFailed, match=r"micro-batch 1: expected {'input_ids': .*\]'}, found .*'labels'"):
        compare(run_dir, [fed[0], {"input_ids": fed[1]["input_ids"]}])
    with pytest.raises(
        CheckFailed, match=r"q0: expected the evidence forward and declared, found .*'labels': 'forward'"
    ):
        compare(run_dir, fed, labels=Evidence.DECLARED)
    fed[1]["labels"][3, 15] ^= 1
    with pytest.raises(CheckFailed, match="micro-batch 1, labels: 1 of 64 values differ"):
        compare(run_dir, fed)


def test_rows_that_were_only_counted_are_found(setting: Setting) -> None:
    model = setting.gpt()
    source, _ = fetched(setting, DEVICE, 1)
    with attach(setting, model) as hook:
        [batch] = source(hook)
        hook.consume()
        hook.commit(1)
    with pytest.raises(
        CheckFailed, match=r"run/a1/s1/r0/m0/q0: expected the evidence forward and forward, found .*loader"
    ):
        compare(setting.directory / "run", [batch])


def test_a_check_that_raises_has_failed_with_its_reason() -> None:
    def fails(_: Setting) -> None:
        raise ZeroDivisionError("by nothing")

    result = run_check("group", Check(name="it divides", run=fails), CPU)
    assert (result.outcome, result.remark) == ("failed", "ZeroDivisionError: by nothing")
    assert line(result).endswith("it divides: ZeroDivisionError: by nothing")
    found = Found(remark="said", figures={"one": 1.0})
    result = run_check("group", Check(name="figures", run=lambda _: found), CPU)
    assert (result.outcome, result.remark, result.figures) == ("passed", "said", {"one": 1.0})
    assert run_check("group", Check(name="needs a GPU", run=fails, cuda=True), CPU).outcome == "not run"


@pytest.mark.parametrize(
    ("end", "reason"),
    [("sys.exit(3)", "its process ended with 3"), ("time.sleep(60)", "its process was ended after 3 s")],
)
def test_a_process_that_dies_or_hangs_fails_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, reason: str
) -> None:
    first, second, *others = [*(check.name for check in GROUPS["wrappers"]), "the end of the process"]
    fake = tmp_path / "fake.py"
    fake.write_text(
        textwrap.dedent(f"""
        import json, sys, time
        result = {{"group": "wrappers", "name": {first!r}, "outcome": "passed", "seconds": 1.0}}
        with open(sys.argv[sys.argv.index("--in-process") + 1], "w") as file:
            print(json.dumps(result), file=file, flush=True)
        {end}
        """),
        encoding="utf-8",
    )
    monkeypatch.setattr(running, "COMMAND", [sys.executable, str(fake)])
    found = supervise(["wrappers"], emulate=True, limit_s=3.0)
    assert [(result.name, result.outcome) for result in found[:2]] == [(first, "passed"), (second, "failed")]
    assert found[1].remark == reason
    assert [(result.name, result.remark) for result in found[2:]] == [(name, f"not begun: {reason}") for name in others]


class Device:
    """Stands for torch.cuda where a check asks for events and the mode of synchronisation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sees: bool = True) -> None:
        self.mode = "default"
        item = torch.Tensor.item

        def watched(tensor: torch.Tensor) -> Any:
            if sees and self.mode == "error":
                raise RuntimeError("called a synchronizing CUDA operation")
            return item(tensor)

        monkeypatch.setattr(torch.Tensor, "item", watched)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "Event", Event)


class Event:
    """The work that is queued takes 250 ms."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None: ...

    def elapsed_time(self, _: "Event") -> float:
        return 250.0


@pytest.mark.parametrize("feed", FEEDS)
def test_what_never_waits_passes(setting: Setting, monkeypatch: pytest.MonkeyPatch, feed: tuple[str, str]) -> None:
    device = Device(monkeypatch)
    figures = never_waits(setting, *feed).figures
    assert set(map(type, figures.values())) == {float}
    assert device.mode == "default"


@pytest.mark.parametrize(
    ("wait", "error"),
    [
        (lambda: torch.ones(1).item(), "called a synchronizing CUDA operation"),
        (lambda: time.sleep(0.1), "behind 250 ms of work a step took 4"),
    ],
)
def test_a_commit_that_waits_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch, wait: Any, error: str) -> None:
    Device(monkeypatch)
    commit = ExportHook.commit

    def waits(hook: ExportHook, step: int) -> None:
        wait()
        commit(hook, step)

    monkeypatch.setattr(ExportHook, "commit", waits)
    with pytest.raises((RuntimeError, CheckFailed), match=error):
        never_waits(setting, *FEEDS[1])


def test_a_mode_that_sees_nothing_is_no_check(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, sees=False)
    with pytest.raises(CheckFailed, match="this check could not fail"):
        never_waits(setting, *FEEDS[0])
