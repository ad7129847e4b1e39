"""DeepSpeed: a loop with `engine(batch)`, `engine.backward(loss)`, `engine.step()`.

    engine, … = deepspeed.initialize(…)
    _, client_state = engine.load_checkpoint(directory)     # when it resumes
    hook = attach(engine, run_dir, client_state=client_state, sequence_length=L, vocab_size=V, config={…})
    loader = hook.wrap(loader)

The forward of the engine tells what is consumed. `engine.step` is a step's end where it is the accumulation's boundary; a
step that overflowed is recorded as such. `engine.save_checkpoint` waits for the export and carries its state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepspeed import DeepSpeedEngine

from train_hooks.adapters.versions import require_version
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.hook import ExportHook

__all__ = ["attach"]

_STATE_KEY = "kiseki_export"


def attach(
    engine: DeepSpeedEngine, run_dir: Path | str, *, client_state: Mapping[str, Any] | None = None, **options: Any
) -> ExportHook:
    """`ExportHook.attach` for an engine, whose `step` and `save_checkpoint` then call the hook. Collective.

    client_state: what `engine.load_checkpoint` returned. Raises InputError for a version of deepspeed that is not known,
    and for a checkpoint that was not written with the hook.
    """
    require_version("deepspeed", "0.19", "0.20")
    resume = (client_state or {}).get(_STATE_KEY)
    if resume is None and engine.global_steps:
        raise InputError(
            f"client_state: expected that of a checkpoint written with the hook, found one of step {engine.global_steps} "
            f"without {_STATE_KEY!r}; give what load_checkpoint returned, or start from step 0"
        )
    hook = ExportHook.attach(engine, run_dir, resume=resume, **options)
    step, save = engine.step, engine.save_checkpoint

    def step_and_commit(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if engine.global_steps > hook.committed_step:
            applied = engine.was_step_applied()
            status = StepStatus.APPLIED if applied else StepStatus.SKIPPED_UPDATE
            hook.commit(engine.global_steps, status=status, metrics={"lr": float(engine.get_lr()[0])})
        return result

    def save_behind_export(save_dir: Any, tag: Any = None, client_state: Any = None, **kwargs: Any) -> Any:
        hook.checkpoint_barrier(hook.committed_step)
        return save(save_dir, tag, {**(client_state or {}), _STATE_KEY: hook.state_dict()}, **kwargs)

    engine.step, engine.save_checkpoint = step_and_commit, save_behind_export
    return hook
