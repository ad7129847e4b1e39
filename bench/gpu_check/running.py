"""Runs the checks: groups in processes of their own, a line for each check, and one report of them all."""

import argparse
import contextlib
import faulthandler
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench.gpu_check import costs, graphs, recording, waiting  # noqa: F401  they register their checks
from bench.gpu_check.checks import GROUPS, Check, Found, Result, Setting
from bench.support.history import Figures, append_figures

LIMIT_S, PROCESS_LIMIT_S = 345.0, 120.0
SKIPPED = "SKIPPED: no CUDA device: nothing was checked"
COMMAND = [sys.executable, str(Path(__file__).parent)]
PROCESSES = (("loaders", "wrappers", "edits", "tokens"), ("waiting",), ("graphs",), ("cost",), ("compile",))


def run_check(group: str, one: Check, device: torch.device) -> Result:
    """The result of one check, in a directory of its own."""
    cuda = device.type == "cuda"
    if one.cuda and not cuda:
        return Result(group=group, name=one.name, outcome="not run", remark="needs a CUDA device")
    outcome, begin, found = "passed", time.perf_counter(), Found()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        try:
            with torch.cuda.stream(torch.cuda.default_stream(device)) if cuda else contextlib.nullcontext():
                found = one.run(Setting(device=device, directory=Path(directory))) or found
                if cuda:
                    torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001  a check may fail in any way, and the others go on
            outcome, found = "failed", Found(remark=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - begin
    return Result(
        group=group, name=one.name, outcome=outcome, seconds=seconds, remark=found.remark, figures=found.figures
    )


def run_groups(names: Iterable[str], device: torch.device, limit_s: float, results: Path) -> None:
    """In a process of their own: run the checks, print a line for each, and write each result as a line of JSON."""
    faulthandler.dump_traceback_later(limit_s, exit=False)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    with results.open("w", encoding="utf-8") as file:
        for group in names:
            for one in GROUPS[group]:
                result = run_check(group, one, device)
                print(json.dumps(asdict(result)), file=file, flush=True)
                print(line(result), flush=True)
    faulthandler.cancel_dump_traceback_later()


def line(result: Result) -> str:
    """One line of the table."""
    remark = f": {' '.join(result.remark.split())}" if result.remark else ""
    return f"{result.outcome:8}{result.seconds:7.1f} s  {result.group:9} {result.name}{remark}"


def supervise(groups: Sequence[str], emulate: bool, limit_s: float) -> list[Result]:
    """Run groups in a process of their own. What did not end in time, or died, has failed, and what is left with it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "results"
        own = ["--emulate"] * emulate + ["--in-process", str(file), "--limit", str(limit_s - 5), "--only", *groups]
        try:
            code = subprocess.run([*COMMAND, *own], timeout=limit_s, check=False).returncode
            end = f"its process ended with {code}"
        except subprocess.TimeoutExpired:
            code, end = 1, f"its process was ended after {limit_s:.0f} s"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    results = [Result(**json.loads(text)) for text in lines]
    planned = [(group, one.name) for group in groups for one in GROUPS[group]]
    if code:
        planned.append((groups[-1], "the end of the process"))
    for group, name in planned[len(results) :]:
        remark = end if len(results) == len(lines) else f"not begun: {end}"
        results.append(Result(group=group, name=name, outcome="failed", remark=remark))
        print(line(results[-1]), flush=True)
    return results


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="gpu_check", description="Check the export hook on a GPU.")
    parser.add_argument("--require", action="store_true", help="exit with 1 where there is no CUDA device")
    parser.add_argument("--emulate", action="store_true", help="run on a CPU what can run there, small")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of checks (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the line of JSON there as well")
    parser.add_argument("--no-history", action="store_true", help="do not append the figures to bench/history.jsonl")
    parser.add_argument("--in-process", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=PROCESS_LIMIT_S, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.emulate or torch.cuda.is_available()):
        print(SKIPPED, file=sys.stderr)
        sys.exit(1 if options.require else 0)
    device = torch.device("cpu") if options.emulate else torch.device("cuda", 0)
    if options.in_process is not None:
        run_groups(options.only, device, options.limit, options.in_process)
        return
    begin = time.monotonic()
    name = f"{platform.machine()}, no CUDA" if options.emulate else torch.cuda.get_device_name(device)
    machine = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    results: list[Result] = []
    for groups in (sum(PROCESSES, ()),) if options.emulate else PROCESSES:
        chosen = [group for group in groups if group in options.only]
        if chosen:
            left_s = LIMIT_S - (time.monotonic() - begin)
            results += supervise(chosen, options.emulate, max(10.0, min(PROCESS_LIMIT_S, left_s)))
    found = report(results, machine, time.monotonic() - begin)
    if not options.emulate:
        append_figures("gpu_check", _figures(results), argparse.Namespace(device=name, no_history=options.no_history))
    if options.json is not None:
        options.json.write_text(found + "\n", encoding="utf-8")
    sys.exit(any(result.outcome == "failed" for result in results))


def _figures(results: Sequence[Result]) -> Figures:
    """What the checks measured; the names have the units in them."""
    figures = Figures()
    for result in results:
        for name, value in result.figures.items():
            figures.add(f"{result.group}, {result.name}: {name}", value)
    figures.add("checks that failed", sum(result.outcome == "failed" for result in results))
    return figures


def report(results: Sequence[Result], machine: dict[str, str], seconds: float) -> str:
    """Print one table of checks and figures, and all of it as a line of JSON, which is given back."""
    print(f"\n{'outcome':8}{'time':>9}  {'group':9} check")
    for result in results:
        print(line(result))
        for name, value in result.figures.items():
            print(f"{'':29}{name:<72}{value:>14,.3f}")
    counts = {kind: sum(result.outcome == kind for result in results) for kind in ("passed", "failed", "not run")}
    print(f"\n{', '.join(f'{count} {kind}' for kind, count in counts.items())}, {seconds:.0f} s on {machine['device']}")
    found = json.dumps({"machine": machine, "seconds": seconds, "results": [asdict(result) for result in results]})
    print(found)
    return found
