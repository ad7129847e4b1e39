"""What the hook costs: time of a step, time on the training thread under a backlog, memory of the device, pinned memory."""

import itertools
import statistics
import time
from collections import deque

import torch

from bench.export_microbenchmarks import Nothing
from bench.export_overhead import GPT
from bench.gpu_check.checks import DEVICE, HOST, CheckFailed, Figures, Found, Setting, check
from bench.gpu_check.trainings import Batch, attach, fetched, microbatches, moved

BARE = "without the hook"
MODES = (BARE, HOST, DEVICE)


class Job:
    """A training whose every step is with the hook, fetched on the host or on the device, or without."""

    def __init__(self, setting: Setting) -> None:
        width, layers, shape = (1024, 24, (8, 2048)) if setting.cuda else (64, 1, (2, 64))
        self.setting = setting
        torch.manual_seed(0)
        self.model = GPT(width, layers).to(setting.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=setting.cuda)
        self.held = itertools.cycle(microbatches(setting, 16, shape))
        self.handed: list[Batch] = []
        self.hook = attach(setting, self.model, shape[1])
        self.tagged = iter(self.hook.wrap(self.handed.pop() for _ in itertools.count()))

    def step(self, mode: str) -> float:
        """Its milliseconds."""
        self.hook.listen(None if mode == BARE else self.model)
        begin = time.perf_counter()
        batch = next(self.held)
        if mode != BARE:
            self.handed.append(moved(self.setting, batch) if mode == DEVICE else batch)
            batch = next(self.tagged)
        batch = batch if mode == DEVICE else moved(self.setting, batch)
        with torch.autocast(self.setting.device.type, dtype=torch.bfloat16, enabled=self.setting.cuda):
            loss = self.model(**batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if mode != BARE:
            self.hook.commit(self.hook.committed_step + 1)
        if self.setting.cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    def memory(self, mode: str) -> Figures:
        """The most in a few steps, where there is a device."""
        if not self.setting.cuda:
            return {}
        self.step(mode)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(5):
            self.step(mode)
        pinned = float(torch.cuda.host_memory_stats().get("allocated_bytes.current", 0))
        found = {"memory of the device": float(torch.cuda.max_memory_allocated()), "pinned memory": pinned}
        return {f"{mode}: {name}, MiB": size / 2**20 for name, size in found.items()}


@check("cost", "step time and memory of a transformer")
def step_time(setting: Setting) -> Found:
    """Modes take turns step by step, in changing order, so that drift cancels."""
    job = Job(setting)
    for mode in MODES * 3:
        job.step(mode)
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    end = time.monotonic() + (50 if setting.cuda else 0)
    for turn in itertools.takewhile(lambda turn: turn < 6 or time.monotonic() < end, range(200)):
        for place in range(3):
            mode = MODES[(turn + place) % 3]
            times[mode].append(job.step(mode))
    figures: Figures = {
        "parameters, millions": sum(parameter.numel() for parameter in job.model.parameters()) / 1e6,
        "steps in each mode": len(times[BARE]),
    }
    for mode in MODES:
        figures |= {f"{mode}: step, {name} ms": value for name, value in _median_and_p99(times[mode]).items()}
        figures |= job.memory(mode)
    job.hook.close()
    return Found(figures=figures)


def _median_and_p99(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "p99": sorted(values)[int((len(values) - 1) * 0.99)]}


def _thread_cost(setting: Setting, where: str, num_pending: int, num: int) -> dict[str, float]:
    """µs that fetch, forward and commit take more than without the hook, of the oldest pending one."""
    model, bare = Nothing().to(setting.device), Nothing().to(setting.device)
    place = Setting(device=setting.device, directory=setting.directory / str(num_pending))
    source, feed = fetched(setting, where, num_pending + num)
    costs = []
    clock = time.perf_counter
    with attach(place, model) as hook:
        tagged = iter(source(hook))
        waiting = deque(itertools.islice(tagged, num_pending))
        for step in range(1, num + 1):
            begin = clock()
            waiting.append(next(tagged))
            fetch = clock() - begin
            [fed] = feed(waiting.popleft())
            begin = clock()
            model(**fed)
            hook.commit(step)
            end = clock()
            bare(**fed)
            costs.append(1e6 * (fetch + (end - begin) - (clock() - end)))
            if step % 20 == 0:  # at least as often as the writer thread does by itself, in a real training
                hook.checkpoint_barrier(step)
    return _median_and_p99(costs)


@check("cost", "cost under a backlog", [(HOST,), (DEVICE,)])
def backlog(setting: Setting, where: str) -> Found:
    """With none and with 500 micro-batches fetched ahead."""
    many, num = (500, 300) if setting.cuda else (50, 40)
    found = {pending: _thread_cost(setting, where, pending, num) for pending in (0, many)}
    if setting.cuda and found[many]["median"] > 2 * found[0]["median"]:
        raise CheckFailed(f"expected a constant cost, found, in µs by micro-batches pending, {found}")
    figures = {
        f"{where}: {pending} pending, {name} µs a step": value
        for pending, each in found.items()
        for name, value in each.items()
    }
    return Found(figures=figures)
