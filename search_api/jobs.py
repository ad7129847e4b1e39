"""Long work: many items, one after the other, in a thread of its own, with progress, cancellation and an end to its results.

1. A job belongs to the key that made it; to others it is not there.
2. Its results stay in memory, at most `job_result_bytes` of all jobs together, for `job_keep_s` after its end.
3. One job runs at a time, so that jobs do not slow down those who wait for an answer; the others wait in order.
4. An item that fails is a problem in its line; the job goes on.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from search_api.problems import Problem
from search_api.settings import Limits

__all__ = ["Job", "JobStore"]

Item = Callable[[], tuple[bytes, bool]]
_FINISHED = ("done", "cancelled", "failed")
_HEARTBEAT_S = 10.0


@dataclass(slots=True)
class Job:
    """A job as it stands. lines: one NDJSON line an item that is done."""

    owner: str
    items: Sequence[Item]
    job: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "waiting"
    num_problems: int = 0
    created_unix_s: float = field(default_factory=time.time)
    ended_unix_s: float | None = None
    detail: str | None = None
    lines: list[bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def finished(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in _FINISHED

    def to_json(self, keep_s: float) -> dict[str, object]:
        """`schemas.JobAnswer`."""
        return {
            "job": self.job,
            "state": self.state,
            "num_items": len(self.items),
            "num_done": len(self.lines),
            "num_problems": self.num_problems,
            "created_unix_s": round(self.created_unix_s, 3),
            "expires_unix_s": None if self.ended_unix_s is None else round(self.ended_unix_s + keep_s, 3),
            "detail": self.detail,
        }

    def notify_watchers(self) -> None:
        """Tell those who wait in `JobStore.watch` that something changed."""
        self.changed.set()
        self.changed = asyncio.Event()


class JobStore:
    """The jobs of one server. Everything but the items themselves runs on the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kiseki-job")

    def start(self, owner: str, items: Sequence[Item]) -> Job:
        """Queue a job. Raises Problem `busy`."""
        self.expire()
        if len(self._jobs) >= self._limits.jobs_kept:
            raise Problem(
                "busy", f"{self._limits.jobs_kept} jobs are kept already; delete finished ones", retry_after_s=60.0
            )
        job = Job(owner=owner, items=items)
        self._jobs[job.job] = job
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def find(self, name: str, owner: str) -> Job:
        """A job of an owner. Raises Problem `job`."""
        self.expire()
        job = self._jobs.get(name)
        if job is None or job.owner != owner:
            raise Problem(
                "job", f"found no job {name[:100]!r} of this key; jobs are kept {self._limits.job_keep_s:g} s"
            )
        return job

    def remove(self, job: Job) -> None:
        """Cancel it where it runs, and forget its results."""
        if not job.finished():
            self._end(job, "cancelled")
        self._jobs.pop(job.job, None)

    def expire(self) -> None:
        """Forget jobs that ended long enough ago."""
        before = time.time() - self._limits.job_keep_s
        for name, job in list(self._jobs.items()):
            if job.ended_unix_s is not None and job.ended_unix_s < before:
                del self._jobs[name]

    def describe(self, job: Job) -> dict[str, object]:
        """`schemas.JobAnswer`."""
        return job.to_json(self._limits.job_keep_s)

    async def watch(self, job: Job) -> AsyncIterator[dict[str, object] | None]:
        """Its state, again after each change until its end; None now and then, to keep the connection."""
        while True:
            changed, finished = job.changed, job.finished()
            yield self.describe(job)
            if finished:
                return
            while not changed.is_set():
                try:
                    await asyncio.wait_for(changed.wait(), _HEARTBEAT_S)
                except TimeoutError:
                    yield None

    async def _run(self, job: Job) -> None:
        async with self._turn:
            if job.finished():
                return
            job.state = "running"
            for item in job.items:
                job.notify_watchers()
                line, is_problem = await asyncio.get_running_loop().run_in_executor(self._pool, item)
                if job.finished():
                    return
                job.lines.append(line)
                job.num_problems += is_problem
                if (
                    sum(len(line) for other in self._jobs.values() for line in other.lines)
                    > self._limits.job_result_bytes
                ):
                    job.lines.clear()
                    job.detail = f"the results of all jobs take more than {self._limits.job_result_bytes} bytes"
                    self._end(job, "failed")
                    return
            self._end(job, "done")

    def _end(self, job: Job, state: str) -> None:
        job.state, job.ended_unix_s = state, time.time()
        job.notify_watchers()

    def close(self) -> None:
        """Cancel everything."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
