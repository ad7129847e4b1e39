"""Megatron-core, the real package: which documents its samples are made of, held against the texts they come from."""

import warnings
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, Key, check_matched, check_seen, crash_and_resume, exported, logged, verify
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus
from train_hooks.replay import ReplayMicrobatch

if find_spec("megatron") is None:
    pytest.skip("make test-adapters has megatron-core", allow_module_level=True)

import torch.distributed as dist

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the framework's own imports
    from tests.adapters.data.megatron_data import halves, prepare, train_dataset, with_builder
    from tests.adapters.jobs.megatron_job import OVERFLOW_STEP, RERUN_STEP, SKIPPED_STEP
from tests.adapters.data.texts import LENGTH, SOURCES, all_tokens, check_documents, texts, tokens_of
from tests.train_hooks.hook.torchrun import free_port
from train_hooks.documents.megatron import MegatronDocuments
from train_hooks.documents.megatron_preprocessing import name_documents

pytestmark = pytest.mark.filterwarnings("ignore")
NUM_SAMPLES = 3000
TOKENS = all_tokens()


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Any:
    """Blends with a cache want one."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def blend(prefixes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_dataset(prefixes, NUM_SAMPLES, tmp_path_factory.mktemp("cache"))


def check_sample(dataset: Any, resolver: MegatronDocuments, index: int) -> list[str]:
    """Every token of the sample stands in the text of the document named, at the offset named."""
    tokens = dataset[index]["tokens"].numpy()
    segments = resolver.segments(index, tokens)
    position = 0
    for segment in segments:
        assert segment.start == position
        position += segment.length
        source = TOKENS[segment.source, segment.document_id]
        found = source[segment.document_token_offset : segment.document_token_offset + segment.length]
        assert found == tokens[segment.start : position].tolist()
    assert position == LENGTH
    return [segment.document_id for segment in segments]


def test_every_segment_of_a_blend_over_epochs_names_its_document_and_offset(blend: Any) -> None:
    assert len(blend.datasets) == 3 and len(blend) == NUM_SAMPLES
    for dataset in blend.datasets:
        assert len(dataset.document_index) >= 2 * len(dataset.indices)  # two epochs and more
    resolver = MegatronDocuments(blend)
    names = [check_sample(blend, resolver, index) for index in range(len(blend))]
    assert sum(len(of_sample) for of_sample in names) > 3000
    assert {number for number, _ in map(resolver.place, range(len(blend)))} == {0, 1, 2}


def test_documents_are_those_that_megatron_says(blend: Any) -> None:
    resolver = MegatronDocuments(blend)
    ids = {source: [text.document_id for text in texts(source)] for source in SOURCES}
    for index in range(0, len(blend), 7):
        number, sample = resolver.place(index)
        dataset = blend.datasets[number]
        text, sequences = dataset._query_document_sample_shuffle_indices(sample)
        segments = resolver.segments(index, text[:-1])
        ordinals = np.searchsorted(dataset.dataset.document_indices, sequences, side="right") - 1
        expected = [ids[SOURCES[number]][ordinal] for ordinal in ordinals]
        found = [segment.document_id for segment in segments]
        assert (
            found == expected[: len(found)] and len(expected) - len(found) <= 1
        )  # the extra token may be a document's first


def test_a_dataset_alone_and_one_with_deferred_indices(blend: Any, prefixes: list[str], tmp_path: Path) -> None:
    alone = blend.datasets[2]
    for index in range(100):
        check_sample(alone, MegatronDocuments(alone), index)
    cache = tmp_path / "cache"
    train_dataset(prefixes, 200, cache)
    deferred = train_dataset(prefixes, 200, cache, defer_npy_index_mmap=True)
    for index in range(200):
        check_sample(deferred, MegatronDocuments(deferred), index)


def test_training(tmp_path: Path) -> None:
    """Ramp-up, a rerun, an overflow, a skipped iteration, workers, a crash, a resume."""
    run = tmp_path / "run"
    prepare(tmp_path / "data")
    trained = Job(
        script=Path(__file__).parent / "jobs" / "megatron_job.py", run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP,
        resume_step=job.RESUME_STEP, rows_a_step=0,
    )  # fmt: skip
    crash_and_resume(trained)
    log, export = logged(run / "log"), exported(run)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.RESUME_STEP <= last < job.KILLED_STEP
    once = {key: seen for key, seen in log.items() if key[0] == 2 or key[1] <= last}
    num_rerun = {rank: max(key[3] for key in once if key[1:3] == (RERUN_STEP, rank)) + 1 for rank in range(2)}
    once = {key: seen for key, seen in once.items() if key[1] != RERUN_STEP or key[3] < num_rerun[key[2]] // 2}
    assert set(export) == set(once) and not any(key[1] == SKIPPED_STEP for key in export)
    for key, part in export.items():
        for name, seen in (("tokens", "input_ids"), ("labels", "labels"), ("position_ids", "position_ids")):
            assert torch.equal(part.batch[name], once[key][seen]), (key, name)
        check_documents(part, "tokens", TOKENS)
    check_positions(export)
    assert statuses(run) == {
        OVERFLOW_STEP: StepStatus.SKIPPED_UPDATE,
        SKIPPED_STEP: StepStatus.SKIPPED_DATA,
    }
    check_matched(run, "whole")
    check_seen(run, "tokens", "labels", "position_ids")
    assert verify(run) == 0


def check_positions(export: dict[Key, ReplayMicrobatch]) -> None:
    """Each global batch is the next samples of the data, whole, whatever its size; superseded steps are the same."""
    batches: dict[tuple[int, int], list[int]] = defaultdict(list)
    for (attempt, step, _, _), part in export.items():
        batches[attempt, step].extend(index for index in part.sample_index if index is not None)
    sizes = {len(batch) for batch in batches.values()}
    assert sizes == {8, 12, 16}
    position = 0
    for step in range(1, job.STEPS + 1):
        if step == SKIPPED_STEP:
            position += 16
            continue
        batch = batches[1 if step <= job.RESUME_STEP else 2, step]
        assert sorted(batch) == list(range(position, position + len(batch)))
        position += len(batch)
    for attempt, step in batches:
        if attempt == 1 and step > job.RESUME_STEP:
            assert sorted(batches[1, step]) == sorted(batches[2, step])


def statuses(run: Path) -> dict[int, StepStatus]:
    """global_step → its status in the newest attempt, where it is not applied."""
    found = {}
    for attempt in RunReader(run).attempts():
        found.update(attempt.step_status())
    return {step: status for step, status in found.items() if status != StepStatus.APPLIED}


def test_indices_of_another_training_are_refused(blend: Any, prefixes: list[str], tmp_path: Path) -> None:
    other = MegatronDocuments(train_dataset(prefixes, NUM_SAMPLES // 4, tmp_path / "cache"))
    refused = 0
    for index in range(200):
        try:
            other.segments(index, blend[index]["tokens"].numpy())
        except InputError:
            refused += 1
    assert refused >= 190
    with pytest.raises(InputError, match="give the dataset that the loader reads"):
        other.segments(0, np.full(LENGTH, 300))


def test_our_files_are_megatrons(prefixes: list[str], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    with_builder(str(theirs), [[tokens_of(text.text)] for text in texts(SOURCES[0])])
    for suffix in (".bin", ".idx"):
        assert Path(f"{theirs}{suffix}").read_bytes() == Path(f"{prefixes[0]}{suffix}").read_bytes()


def test_names_that_do_not_belong_to_an_index(tmp_path: Path) -> None:
    prefix = tmp_path / "data"
    with_builder(str(prefix), [halves(tokens_of(text.text)) for text in texts(SOURCES[2])])
    with pytest.raises(InputError, match="expected the names of 60 documents, found 59"):
        name_documents(prefix, list(texts(SOURCES[2]))[1:])
    dataset = train_dataset([str(prefix)] * 3, 20, tmp_path / "cache").datasets[0]
    with pytest.raises(InputError, match="name_documents"):
        MegatronDocuments(dataset)
    unnamed = MegatronDocuments(dataset, unnamed_ok=True)
    first = unnamed.segments(0, dataset[0]["tokens"].numpy())[0]
    assert first.source == "data" and first.document_id.isdigit()
    name_documents(prefix, texts(SOURCES[2]))
    MegatronDocuments(dataset)
    with_builder(str(prefix), [[tokens_of(text.text)] for text in texts(SOURCES[2])])
    with pytest.raises(InputError, match="made anew"):
        MegatronDocuments(dataset)
    with pytest.raises(InputError, match="expected a GPTDataset"):
        MegatronDocuments([1, 2])
