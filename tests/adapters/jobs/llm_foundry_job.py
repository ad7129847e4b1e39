"""A rank of a real llm-foundry training on two ranks: its `train`, dataloader, MPT model, evaluation and resume."""

import json
import sys
from pathlib import Path
from typing import Any

from tests.adapters.data.llm_foundry_data import configuration  # before composer, which wants torchvision

# isort: split
from composer import Callback, Logger, State
from llmfoundry import registry
from llmfoundry.command_utils import train
from omegaconf import OmegaConf

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.job import kill_at, rank, run_dir


class ConsumedLogCallback(Callback):
    """Hooks the log to the model inside of llm-foundry's, which is called with tensors by name."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def init(self, state: State, logger: Logger) -> None:
        """The model is there, and not wrapped."""
        model: Any = state.model
        ConsumedLog(model.model, self._directory, rank(), lambda: int(state.timestamp.batch.value), kill_at=kill_at())


def main() -> None:
    """`llmfoundry train FILE`, but for the registration and the YAML."""
    registry.callbacks.register("consumed_log", func=ConsumedLogCallback)
    run = run_dir()
    trainer = train(OmegaConf.create(configuration(run.parent, run, json.loads(sys.argv[2]))))
    trainer.close()


if __name__ == "__main__":
    main()
