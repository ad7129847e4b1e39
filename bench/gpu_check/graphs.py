"""torch.compile and CUDA graphs."""

from typing import Any

import torch
from torch import nn

from bench.gpu_check.checks import DEVICE, HOST, CheckFailed, Found, Setting, check
from bench.gpu_check.trainings import Batch, Log, attach, cloned, compare, fetched, microbatches, moved, train
from train_hooks import ExportHook
from train_hooks.export_format.errors import KisekiError
from train_hooks.hook.export.exporter import ExporterOptions


@check("compile", "torch.compile", [("before attach",), ("after attach",), ("in place",), ("reduce-overhead",)])
def compiled(setting: Setting, how: str) -> None:
    """With the compiler of kernels on a GPU, on a CPU without. Gradients in a graph's memory are not accumulated."""
    graphed = how == "reduce-overhead"
    options: dict[str, Any] = {"mode": how if graphed else None} if setting.cuda else {"backend": "aot_eager"}

    def compile_model(model: nn.Module) -> Any:
        if how != "in place":
            return torch.compile(model, **options)
        model.compile(**options)
        return model

    wrap: dict[str, Any] = {"wrap_attached" if how in ("after attach", "in place") else "wrap": compile_model}
    try:
        train(setting, *fetched(setting, DEVICE if graphed else HOST), accumulation=1, **wrap)
    finally:
        torch._dynamo.reset()


class Replay:
    """Forward and backward on static buffers: a captured graph, or on a CPU the same work done again."""

    def __init__(self, setting: Setting, hook: ExportHook, model: nn.Module, mode: str = "global") -> None:
        self._hook, self._model = hook, model
        self._static = moved(setting, microbatches(setting, 1)[0])
        self._graph: torch.cuda.CUDAGraph | None = None
        if setting.cuda:
            with hook.paused():
                side = setting.stream()
                with torch.cuda.stream(side):
                    for _ in range(3):
                        self._work()
                torch.cuda.current_stream().wait_stream(side)
                model.zero_grad(set_to_none=True)
                self._graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self._graph, capture_error_mode=mode):
                    self._seen = self._work()

    def run(self, batch: Batch) -> Batch:
        """Train on it, once; clones, made in the graph, of what the forward got."""
        for name, static in self._static.items():
            static.copy_(batch[name], non_blocking=True)
        self._hook.forwarded(**self._static)
        if self._graph is not None:
            self._graph.replay()
        else:
            with self._hook.paused():
                self._seen = self._work()
        return cloned(self._seen)

    def _work(self) -> Batch:
        seen = cloned(self._static)
        self._model(**self._static).backward()
        return seen


@check("graphs", "replays of a CUDA graph, with hook.forwarded", [(HOST,), (DEVICE,)])
def replayed(setting: Setting, where: str) -> None:
    """`hook.forwarded` says what the replay's forward got."""
    model = setting.gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    source, _ = fetched(setting, where)
    log: list[Batch] = []
    with attach(setting, model) as hook:
        replay = Replay(setting, hook, model)
        for number, batch in enumerate(source(hook), 1):
            setting.lag()
            log.append(replay.run(batch))
            if number % 2 == 0:
                optimizer.step()
                hook.commit(number // 2)
    compare(setting.directory / "run", log)


@check("graphs", "make_graphed_callables before attach", cuda=True)
def graphed_callables(setting: Setting) -> None:
    """Its forward is called through the module, so that hooks run."""

    def graphed(model: nn.Module) -> nn.Module:
        sample = moved(setting, microbatches(setting, 1)[0])
        torch.cuda.make_graphed_callables(model, tuple(sample.values()))
        return model

    train(setting, *fetched(setting, HOST), wrap=graphed, positional=True)


@check("graphs", "a forward under capture is refused in words", cuda=True)
def capture_refused(setting: Setting) -> Found:
    """The hook raises before it touches the device, so that the capture ends in order, and the training goes on."""
    model = setting.gpt()
    log = Log(model)
    with attach(setting, model) as hook:
        first, second = (moved(setting, batch) for batch in hook.wrap(microbatches(setting, 2)))
        model(**first).backward()
        hook.commit(1)
        hook.checkpoint_barrier(1)
        words: BaseException | None = None
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                model(**second)
        except Exception as error:  # noqa: BLE001  what it is, is what is checked
            words = error
        while words is not None and not isinstance(words, KisekiError):
            words = words.__context__
        if words is None:
            raise CheckFailed("expected an error in words of the hook, found none")
        torch.cuda.synchronize()
        del log.forwards[1:]
        model(**second).backward()
        hook.commit(2)
    compare(setting.directory / "run", log.forwards)
    return Found(remark=str(words))


@check("graphs", "a graph is captured while the writer thread is at work", [("thread_local",), ("global",)], cuda=True)
def captured_late(setting: Setting, mode: str) -> None:
    """Neither the capture nor the export fails, while calls of CUDA on two threads meet; mode: capture_error_mode."""
    model = setting.gpt()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    source, feed = fetched(setting, HOST, 36)
    log: list[Batch] = []
    with attach(setting, model, options=ExporterOptions(group_interval_s=0.0)) as hook:
        for step, batch in enumerate(source(hook), 1):
            if step % 9:
                [fed] = feed(batch)
                setting.lag()
                log.append(cloned(fed))
                model(**fed).backward()
            else:
                log.append(Replay(setting, hook, model, mode).run(batch))
            optimizer.step()
            hook.commit(step)
    compare(setting.directory / "run", log)
