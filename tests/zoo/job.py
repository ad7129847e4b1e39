"""One process of a training: it attaches the hook to its models, and has the independent log of each run."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tests.train_hooks.hook.toy import attach
from tests.zoo.log import ForwardLog, noted
from train_hooks.export_format.errors import KisekiError

__all__ = ["Hook", "Job"]


class Hook:
    """The hook, as loops call it. What they tell it, the log is told too."""

    def __init__(self, hook: Any, log: ForwardLog) -> None:
        self._hook, self.log = hook, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hook, name)

    def wrap(self, loader: Any, **options: Any) -> Any:
        """`ExportHook.wrap`, behind a loader that the log watches."""
        return self._hook.wrap(noted(loader, self.log, options), **options)

    def commit(self, global_step: int, **options: Any) -> None:
        """`ExportHook.commit`. A step that it refuses is the log's failed step."""
        status = options.get("status")
        self.log.end_step(global_step, None if status is None else str(status))
        try:
            self._hook.commit(global_step, **options)
        except KisekiError:
            self.log.failed_step = global_step
            raise

    def consume(self, num_microbatches: int = 1) -> None:
        """`ExportHook.consume`."""
        self._hook.consume(num_microbatches)
        self.log.count(num_microbatches)

    def discard(self) -> None:
        """`ExportHook.discard`."""
        self._hook.discard()
        self.log.discard()

    def trained_on(self, **tensors: Any) -> None:
        """`ExportHook.trained_on`."""
        self.log.declare(tensors)
        self._hook.trained_on(**tensors)

    def forwarded(self, *args: Any, **kwargs: Any) -> None:
        """`ExportHook.forwarded`."""
        self.log.saw(args, kwargs)
        self._hook.forwarded(*args, **kwargs)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """`ExportHook.paused`."""
        with self._hook.paused(), self.log.silence():
            yield

    def close(self) -> None:
        """`ExportHook.close`."""
        self.log.stop()
        self._hook.close()


class Job:
    """What a loop needs beside torch. `directory` has one run directory for each name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.logs: dict[str, ForwardLog] = {}
        self.hooks: list[Hook] = []

    def attach(
        self,
        model: nn.Module,
        run: str = "run",
        *,
        tokens: Sequence[str] = ("input_ids",),
        like: nn.Module | None = None,
        in_eval: bool = False,
        repeats: bool = False,
        resume: Mapping[str, object] | None = None,
        **options: Any,
    ) -> Hook:
        """The hook on `model`, which trains the run of that name. tokens, like, in_eval, repeats: see `ForwardLog.listen`."""
        log = self.logs.setdefault(run, ForwardLog())
        hook = Hook(attach(model, self.directory / run, resume=resume, **options), log)
        log.listen(model, tokens=tokens, like=like, in_eval=in_eval, repeats=repeats)
        self.hooks.append(hook)
        return hook

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Forwards in here repeat forwards of their step."""
        with contextlib.ExitStack() as stack:
            for log in self.logs.values():
                stack.enter_context(log.silence())
            yield

    def close(self) -> KisekiError | None:
        """Close all hooks; the first error of one."""
        error = None
        for hook in self.hooks:
            try:
                hook.close()
            except KisekiError as found:
                error = error or found
        return error
