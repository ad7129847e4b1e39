"""Model checkpoints that are complete or not believed.

`RUN_DIR/checkpoints/step-000120/` holds what torch.distributed.checkpoint writes (model and optimizer, sharded over the
ranks that wrote them, loadable by any number) and `trainer_state.json`. It is written under a name that ends in
`.partial` and renamed when every rank is done: a directory without that ending is complete, however the job died.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from errors import InputError
from gpt import GPT
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

STATE_FILE = "trainer_state.json"
PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """What a checkpoint knows beside tensors. There is no dropout, so the data position is all the randomness left."""

    step: int
    next_sample_index: int
    model: dict[str, int]
    data: dict[str, Any]
    export: dict[str, object] | None


def complete_checkpoints(run_dir: Path) -> dict[int, Path]:
    """Step -> directory of every complete checkpoint, oldest first."""
    found = {}
    for directory in (run_dir / "checkpoints").glob("step-*"):
        if match := re.fullmatch(r"step-(\d+)", directory.name):
            found[int(match[1])] = directory
    return dict(sorted(found.items()))


def read_state(directory: Path) -> TrainerState:
    """The trainer state of a complete checkpoint."""
    try:
        return TrainerState(**json.loads((directory / STATE_FILE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{directory}: no readable {STATE_FILE} ({error}); remove this checkpoint") from error


def save_checkpoint(run_dir: Path, model: GPT, optimizer: torch.optim.Optimizer, state: TrainerState) -> None:
    """Collective: write the checkpoint of a step, and return when it is complete."""
    final = run_dir / "checkpoints" / f"step-{state.step:06d}"
    partial = final.with_name(final.name + PARTIAL)
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)  # left by a job that died here
    dist.barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=partial)
    if dist.get_rank() == 0:
        with (partial / STATE_FILE).open("w", encoding="utf-8") as file:
            json.dump(asdict(state), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(final)
        _sync_directory(final.parent)
    dist.barrier()


def _sync_directory(directory: Path) -> None:
    """Make a rename in this directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(directory: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Collective: fill model and optimizer in place, bit for bit, on any number of ranks."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    _load({"model": model_state, "optimizer": optimizer_state}, directory)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)


def load_weights(directory: Path, model: GPT) -> None:
    """Fill a model of a single process; needs no process group."""
    model_state = get_model_state_dict(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what we want here
        _load({"model": model_state}, directory)
    set_model_state_dict(model, model_state)


def _load(state: dict[str, Any], directory: Path) -> None:
    try:
        load(state, checkpoint_id=directory)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{directory}: does not fit the model or is damaged ({reason}); remove it") from error


def check_same(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A checkpoint fits only the model and the data order that it was made with."""
    for name in now:
        if before.get(name) != now[name]:
            raise InputError(
                f"the checkpoint was made with {what} {name} = {before.get(name)}, this command asks for {now[name]}; "
                "give the same options or a new --run-dir"
            )
