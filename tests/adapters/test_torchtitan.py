"""torchtitan: the real package's data path, in a loop of the form of its own, which wants a GPU."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, crash_and_resume, exported, logged, verify
from tests.adapters.texts import SOURCES, bytes_tokenizer, texts

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
        script=Path(__file__).parent / "torchtitan_job.py", run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP,
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
    assert verify(run) == 0
