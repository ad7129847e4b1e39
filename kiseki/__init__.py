"""kiseki (軌跡): a record of every packed sequence that a language model is trained on, and a trace from its outputs back.

    import kiseki

    hook = kiseki.ExportHook.attach(model, run_dir, sequence_length=L, vocab_size=V, config={…})  # in a trainer
    run = kiseki.open_run(run_dir)                                                # after `kiseki index RUN`
    found = kiseki.trace(run, "what a model wrote", before_step=1001)             # what the checkpoint of step 1000 had seen
    with kiseki.Client("http://127.0.0.1:8700") as client: …                      # the same over HTTP

Nothing is loaded before it is used: `ExportHook` needs torch, `Client` needs httpx, the others need neither. The parts stand
in four packages: `train_hooks`, `indexer`, `search_api` and `ui`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiseki.questions import open_run, trace
    from search_api.client import Client
    from train_hooks.export_format.records import Segment
    from train_hooks.hook.hook import ExportHook

__all__ = ["Client", "ExportHook", "Segment", "__version__", "open_run", "trace"]

__version__ = "0.2.0.dev0"

_WHERE = {  # the module of a name, and the package that must be ours
    "Client": ("search_api.client", "search_api"),
    "ExportHook": ("train_hooks.hook.hook", "train_hooks"),
    "Segment": ("train_hooks.export_format.records", "train_hooks"),
    "open_run": ("kiseki.questions", "indexer"),
    "trace": ("kiseki.questions", "indexer"),
}
_EXTRAS = {"torch": "train", "httpx": "client"}


def __getattr__(name: str) -> Any:
    """A public name, loaded now. Raises ImportError, which says what to install or what stands in the way."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kiseki.own_packages import check_ours

    module, package = _WHERE[name]
    check_ours(package)
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        what = f"kiseki.{name} needs {error.name}; run pip install 'kiseki[{_EXTRAS[error.name]}]'"
        raise ImportError(what, name=error.name) from error


def __dir__() -> list[str]:
    return sorted(__all__)
