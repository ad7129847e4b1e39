"""Record every packed sequence that a trainer consumes, with step, rank and documents.

    from train_hooks import ExportHook, Segment

`ExportHook` needs torch (`pip install 'kiseki[train]'`); everything else here does not.
"""

from typing import TYPE_CHECKING, Any

from train_hooks.export_format.records import Segment, SequenceAddress, StepStatus

if TYPE_CHECKING:
    from train_hooks.hook.hook import ExportHook

__all__ = ["ExportHook", "Segment", "SequenceAddress", "StepStatus"]


def __getattr__(name: str) -> Any:
    if name == "ExportHook":
        from train_hooks.hook.hook import ExportHook  # torch is loaded by trainers alone

        return ExportHook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
