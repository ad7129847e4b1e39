"""torchtitan: the real package's data path, in a loop of the form of its own, which wants a GPU."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, check_matched, check_seen, crash_and_resume, exported, logged, verify
from tests.adapters.data.models import Small
from tests.adapters.data.texts import SOURCES, bytes_tokenizer, texts
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.status import status

pytestmark = pytest.mark.skipif(find_spec("torchtitan") is None, reason="make test-adapters has torchtitan")
NAMES = {"input_ids": "0.input", "position_ids": "0.positions", "labels": "1"}


def prepare(directory: Path) -> None:
    """Real texts as a dataset of two shards, and a tokenizer of bytes."""
    corpus = directory / "corpus"
    corpus.mkdir()
    for source in SOURCES[:2]:
        lines = [json.dumps({"text": text.text}) + "\n" for text in texts(source) if text.text]
        (corpus / f"{source}.jsonl").write_text("".join(lines), encoding="utf-8")
    bytes_tokenizer(directory / "tokenizer")


def test_loader(tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(tmp_path)
    trained = Job(
        script=Path(__file__).parent / "jobs" / "torchtitan_job.py", run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP,
        resume_step=job.RESUME_STEP, rows_a_step=job.ACCUMULATION * job.MICRO_BATCH * job.RANKS,
    )  # fmt: skip
    crash_and_resume(trained, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    log, export = logged(run / "log"), exported(run)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.RESUME_STEP <= last < job.KILLED_STEP
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        for theirs, ours in NAMES.items():
            assert torch.equal(part.batch[ours], log[key][theirs]), (key, ours)
    for (attempt, step, rank, microbatch), part in export.items():
        if attempt == 1 and step > job.RESUME_STEP:
            assert torch.equal(part.batch["0.input"], export[2, step, rank, microbatch].batch["0.input"])
    for attempt, step in {key[:2] for key in export}:
        rows = [
            row for key, part in export.items() if key[:2] == (attempt, step) for row in part.batch["0.input"].tolist()
        ]
        assert len(rows) == len(set(map(tuple, rows))) == trained.rows_a_step
    check_matched(run, "whole")
    check_seen(run, "0.input", "0.positions", "1")
    assert verify(run) == 0


@pytest.mark.filterwarnings("ignore")
def test_the_model_of_the_trainer_that_reads_it(tmp_path: Path) -> None:
    """The loader listens to the first part of that Trainer's model."""
    from torchtitan.components.tokenizer import HuggingFaceTokenizer
    from torchtitan.trainer import Trainer

    from train_hooks.adapters.torchtitan import ExportedTextDataLoader

    prepare(tmp_path)
    loaders: list[Any] = [
        ExportedTextDataLoader.Config(
            dataset="c4_test", dataset_path=str(tmp_path / "corpus"), run_dir=str(tmp_path / f"run{number}"), vocab_size=258
        ).build(
            dp_world_size=1, dp_rank=0, seq_len=32, local_batch_size=2,
            tokenizer=HuggingFaceTokenizer(tokenizer_path=str(tmp_path / "tokenizer")),
        )
        for number in range(2)
    ]  # fmt: skip
    trainers: list[Any] = [object.__new__(Trainer) for _ in loaders]
    models = [Small(vocabulary=258, length=32) for _ in loaders]
    for trainer, loader, model in zip(trainers, loaders, models, strict=True):
        trainer.dataloader, trainer.model_parts = loader, [model]
    read, other = loaders[1], models[0]
    data = iter(read)
    optimizer = torch.optim.SGD(models[1].parameters(), lr=0.1)
    for step, model in enumerate((models[1], other), 1):
        inputs, labels = next(data)
        model(inputs["input"], labels=labels).backward()
        models[1](torch.zeros(1, 32, dtype=torch.int64)).sum().backward()
        optimizer.step()
        assert read.hook.committed_step == step
    read.hook.close()
    shares = status(RunReader(tmp_path / "run1")).shares
    assert (shares.whole, shares.count) == (2, 2)
