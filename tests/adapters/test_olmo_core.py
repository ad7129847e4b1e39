"""OLMo-core, the real package: training, and which documents its instances are made of."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, check_matched, check_seen, crash_and_resume, exported, logged, metrics_of, verify
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus

if find_spec("olmo_core") is None:
    pytest.skip("make test-adapters has ai2-olmo-core", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the framework's own imports
    from tests.adapters.data.olmo_data import dataset_of, named_tokens, prepare
    from tests.adapters.jobs.olmo_core_job import SKIPPED_STEP
from tests.adapters.data.texts import LENGTH, SOURCES, check_documents
from train_hooks.documents.olmo import OlmoDocuments

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = job.ACCUMULATION * job.MICRO_BATCH * job.RANKS


def test_training(tmp_path: Path) -> None:
    """A dry run, a skipped step, workers, a crash, a resume."""
    run = tmp_path / "run"
    prepare(tmp_path / "data")
    trained = Job(
        script=Path(__file__).parent / "jobs" / "olmo_core_job.py", run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP,
        resume_step=job.RESUME_STEP, rows_a_step=ROWS,
    )  # fmt: skip
    crash_and_resume(trained)
    log, export = logged(run / "log"), exported(run)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.RESUME_STEP <= last < job.KILLED_STEP
    dry_runs = {key for key in log if key[:2] in ((1, 0), (2, job.RESUME_STEP))}
    assert dry_runs
    whole = {key for key in log if key[0] == 2 or key[1] <= last} - dry_runs
    skipped = {key for key in export if key[1] == SKIPPED_STEP}
    assert set(export) == whole | skipped and len(skipped) == job.ACCUMULATION * job.RANKS
    tokens = named_tokens()
    for key, part in export.items():
        check_documents(part, "input_ids", tokens)
        if key not in skipped:
            for name, seen in log[key].items():
                assert torch.equal(part.batch[name], seen), (key, name)
    check_positions(export)
    assert RunReader(run).attempt(2).step_status()[SKIPPED_STEP] == StepStatus.SKIPPED_DATA
    metrics = metrics_of(run)
    assert all("loss" in metrics[step] for step in range(1, job.STEPS + 1) if step != SKIPPED_STEP)
    num_skipped = sum(part.batch["input_ids"].shape[0] for key, part in export.items() if key in skipped)
    check_matched(run, "whole", num_skipped=num_skipped)
    check_seen(run, "input_ids", "labels")
    assert verify(run) == 0


def check_positions(export: dict[Any, Any]) -> None:
    """Global batches are whole, and no instance comes twice on the lineage."""
    batches: dict[tuple[int, int], list[int]] = {}
    for (attempt, step, _, _), part in export.items():
        batches.setdefault((attempt, step), []).extend(part.sample_index)
    assert {len(set(batch)) for batch in batches.values()} == {ROWS}
    lineage = [batches[1 if step <= job.RESUME_STEP else 2, step] for step in range(1, job.STEPS + 1)]
    assert len(set().union(*lineage)) == ROWS * job.STEPS
    for attempt, step in batches:
        if attempt == 1 and step > job.RESUME_STEP:
            assert sorted(batches[1, step]) == sorted(batches[2, step])


def test_every_instance_names_its_documents_and_offsets(tmp_path: Path) -> None:
    prepare(tmp_path)
    dataset, tokens = dataset_of(tmp_path), named_tokens()
    resolver = OlmoDocuments(dataset, corpus="corpus")
    seen = set()
    for index in range(len(dataset)):
        ids = dataset[index]["input_ids"].numpy()
        segments = resolver.segments(index, ids)
        assert sum(segment.length for segment in segments) == LENGTH
        for segment in segments:
            source = tokens[segment.source, segment.document_id][segment.document_token_offset :]
            assert source[: segment.length] == ids[segment.start : segment.start + segment.length].tolist()
            seen.add(segment.source)
    assert seen == set(SOURCES) and len(dataset) > 500


def test_files_of_other_data(tmp_path: Path) -> None:
    paths = prepare(tmp_path)
    dataset = dataset_of(tmp_path)
    with pytest.raises(InputError, match="expected the tokens of"):
        OlmoDocuments(dataset, corpus="corpus").segments(0, dataset[1]["input_ids"].numpy())
    with pytest.raises(InputError, match="expected an instance below"):
        OlmoDocuments(dataset, corpus="corpus").segments(len(dataset), dataset[1]["input_ids"].numpy())
    names = Path(paths[0]).with_suffix(".csv.gz")
    names.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"each with its \.csv\.gz"):
        OlmoDocuments(dataset, corpus="corpus")
    longest = max(paths[1:], key=lambda path: Path(path).stat().st_size)
    names.write_bytes(Path(longest).with_suffix(".csv.gz").read_bytes())
    if Path(longest).stat().st_size > Path(paths[0]).stat().st_size:
        with pytest.raises(InputError, match="belongs to another token file"):
            OlmoDocuments(dataset, corpus="corpus").segments(0, dataset[0]["input_ids"].numpy())
    with pytest.raises(InputError, match="expected a NumpyFSLDataset"):
        OlmoDocuments([1], corpus="corpus")
