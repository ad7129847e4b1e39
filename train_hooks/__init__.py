"""Record every packed sequence that a trainer consumes, with step, rank and documents.

    from train_hooks import ExportHook, Segment

`ExportHook` needs torch (`pip install 'kiseki[train]'`); everything else here does not. Each name is loaded when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train_hooks.export_format.records import Segment, SequenceAddress, StepStatus
    from train_hooks.hook.hook import ExportHook

__all__ = ["ExportHook", "Segment", "SequenceAddress", "StepStatus"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "train_hooks.hook.hook" if name == "ExportHook" else "train_hooks.export_format.records"
    return getattr(importlib.import_module(module), name)
