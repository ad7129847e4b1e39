"""The training thread never waits for the device."""

import contextlib
import time
from collections.abc import Iterator

import torch

from bench.export_microbenchmarks import Nothing
from bench.gpu_check.checks import DEVICE, HOST, CheckFailed, Found, Setting, check
from bench.gpu_check.recording import EDITS, edited
from bench.gpu_check.trainings import NUM, attach
from train_hooks.hook.export.exporter import ExporterOptions

FEEDS = [("none", DEVICE), *((edit, HOST) for edit in EDITS if not edit.startswith("labels in"))]


@contextlib.contextmanager
def _no_synchronisation() -> Iterator[None]:
    """What waits for the device raises, on every thread of the process."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@check("waiting", "fetch, forward and commit", FEEDS, cuda=True)
def never_waits(setting: Setting, edit: str, where: str) -> Found:
    """The training stream has work of some 0.3 s. What synchronises raises, and all returns long before the work is done.

    The first steps, which allocate, may. The writer thread sleeps meanwhile, but for the barriers between the steps.
    """
    with contextlib.suppress(RuntimeError), _no_synchronisation():
        torch.ones(1, device=setting.device).item()
        raise CheckFailed('set_sync_debug_mode("error") does not see `item()`: this check could not fail')
    model = Nothing().to(setting.device)
    source, feed = edited(setting, edit, where)
    times, works = [], []
    with attach(setting, model, options=ExporterOptions(group_interval_s=3600.0)) as hook:
        batches = iter(source(hook))
        for step in range(1, NUM + 1):
            warm = contextlib.nullcontext if step <= NUM // 2 else _no_synchronisation
            hook.checkpoint_barrier(step - 1)
            torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            setting.lag(500_000_000)
            end.record()
            begin = time.perf_counter()
            with warm():
                batch = next(batches)
            fed = feed(batch)
            with warm():
                for part in fed:
                    model(**part)
                hook.commit(step)
            times.append(1e3 * (time.perf_counter() - begin))
            torch.cuda.synchronize()
            works.append(start.elapsed_time(end))
    late = max(ours / work for ours, work in zip(times[NUM // 2 :], works[NUM // 2 :], strict=True))
    if late > 0.3:
        raise CheckFailed(f"behind {works[-1]:.0f} ms of work a step took {late:.0%} of it; each, ms: {times}")
    return Found(figures={"first step behind queued work, ms": times[0], "worst of the last three, ms": max(times[3:])})
