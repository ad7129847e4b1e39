"""llm-foundry, the real package: its own `train`, text dataloader and MPT model."""

import json
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, Key, check_matched, crash_and_resume, exported, logged, metrics_of, verify

if find_spec("llmfoundry") is None:
    pytest.skip("make test-adapters has llm-foundry", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the framework's own imports
    from tests.adapters.data.llm_foundry_data import LENGTH, SHARD_BYTES, all_texts, prepare, tokenize

    # isort: split
    from llmfoundry import registry
    from llmfoundry.command_utils.data_prep.convert_text_to_mds import ConcatTokensFromFilesDataset
    from llmfoundry.data import ConcatTokensDataset
    from streaming import MDSWriter
    from streaming.base.format.mds.reader import MDSReader
    from transformers import AutoTokenizer

from tests.adapters.data.texts import EOS, check_documents
from train_hooks import Segment
from train_hooks.documents.mds import MdsPlaces, concatenated
from train_hooks.export_format.errors import InputError
from train_hooks.replay import ReplayMicrobatch

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS_A_STEP = job.ACCUMULATION * job.MICRO_BATCH * job.RANKS


def trained(directory: Path, loader: dict[str, Any]) -> Path:
    """Train, kill, resume; the run directory."""
    run = directory / "run"
    prepare(directory)
    of_job = Job(
        script=Path(__file__).parent / "jobs" / "llm_foundry_job.py", run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP,
        resume_step=job.RESUME_STEP, rows_a_step=ROWS_A_STEP,
    )  # fmt: skip
    crash_and_resume(of_job, json.dumps(loader), NODE_RANK="0", HF_HUB_OFFLINE="1")
    return run


def check_forwards(run: Path, export: dict[Key, ReplayMicrobatch]) -> None:
    """Each micro-batch of a step that was over is what the model's forward wrote down, in all tensors."""
    check_matched(run, "whole")
    log = logged(run / "log")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.RESUME_STEP <= last < job.KILLED_STEP
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert "input_ids" in log[key]
        for name, seen in log[key].items():
            assert torch.equal(part.batch[name].to(seen.dtype), seen), (key, name)


def rows_of(export: dict[Key, ReplayMicrobatch]) -> dict[tuple[int, int], list[tuple[int, ...]]]:
    """(attempt, step) → the tokens of every row of the global batch."""
    found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for (attempt, step, _, _), part in export.items():
        found.setdefault((attempt, step), []).extend(tuple(row) for row in part.batch["input_ids"].tolist())
    return found


def check_global_batches(export: dict[Key, ReplayMicrobatch]) -> None:
    """No sequence twice, in a step or on the lineage; superseded steps are repeated with the same sequences."""
    rows = rows_of(export)
    assert all(len(of_step) == ROWS_A_STEP for of_step in rows.values())
    lineage = [row for step in range(1, job.STEPS + 1) for row in rows[1 if step <= job.RESUME_STEP else 2, step]]
    assert len(lineage) == len(set(lineage)) == job.STEPS * ROWS_A_STEP
    again = [step for attempt, step in rows if attempt == 1 and step > job.RESUME_STEP]
    assert all(sorted(rows[1, step]) == sorted(rows[2, step]) for step in again)


def sources(directory: Path) -> dict[tuple[str, str], list[int]]:
    """Source and id → the tokens of the text, and its end."""
    ids = tokenize(directory)
    return {(text.source, text.document_id): [*ids(text.text), EOS] for text in all_texts()}


def test_trainer_with_its_text_dataloader(tmp_path: Path) -> None:
    run = trained(tmp_path, {"name": "text"})
    export = exported(run)
    check_forwards(run, export)
    check_global_batches(export)
    metrics = metrics_of(run)
    assert set(metrics) == set(range(1, job.STEPS + 1))
    assert all({"loss", "lr"} <= set(values) for values in metrics.values())
    assert verify(run) == 0


def test_training_on_concatenated_samples_that_know_their_documents(tmp_path: Path) -> None:
    packed = {"name": "text_with_documents", "dataset": {"local": str(tmp_path / "packed")}}
    run = trained(tmp_path, packed)
    export = exported(run)
    check_forwards(run, export)
    check_global_batches(export)
    for part in export.values():
        check_documents(part, "input_ids", sources(tmp_path))
    (tmp_path / "corpus").mkdir()
    lines = [{"id": text.document_id, "text": text.text, "source": text.source} for text in all_texts()]
    corpus = tmp_path / "corpus" / "all.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert verify(run, "--corpus", str(corpus.parent)) == 0
    of_sample = dict(rows_by_index(export))
    raw = raw_samples(tmp_path / "packed" / "train")
    places = MdsPlaces([tmp_path / "packed" / "train"])
    assert len(of_sample) == job.STEPS * ROWS_A_STEP
    for index, row in of_sample.items():
        place = places.place(index)
        assert raw[place.shard][place.row]["tokens"].tolist() == row


def rows_by_index(export: dict[Key, ReplayMicrobatch]) -> Iterator[tuple[int, list[int]]]:
    """(sample_index, tokens) of each row."""
    for part in export.values():
        for index, row in zip(part.sample_index, part.batch["input_ids"].tolist(), strict=True):
            assert index is not None
            yield index, row


def raw_samples(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Shard → its rows, read by the real reader of a shard."""
    index = json.loads((directory / "index.json").read_text())
    readers = {
        shard["raw_data"]["basename"]: MDSReader.from_json(str(directory), None, shard) for shard in index["shards"]
    }
    assert len(readers) > 3
    return {name: [reader[row] for row in range(len(reader))] for name, reader in readers.items()}


def loaded(directory: Path, dataset: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Every batch of the registered dataloader, with two workers."""
    registered = registry.dataloaders.get("text_with_documents")
    tokenizer = AutoTokenizer.from_pretrained(str(directory / "tokenizer"))
    spec: Any = registered(
        tokenizer=tokenizer, device_batch_size=4, drop_last=False, num_workers=2, pin_memory=False, persistent_workers=False,
        dataset={"max_seq_len": LENGTH, "shuffle": True, **dataset}, **options,
    )  # fmt: skip
    batches = list(spec.dataloader)
    assert sum(map(spec.get_num_samples_in_batch, batches)) == sum(len(batch["sample_index"]) for batch in batches)
    return batches


def rows_of_batches(batches: list[dict[str, Any]]) -> Iterator[tuple[int, list[int], list[Segment]]]:
    """sample_index, tokens, segments."""
    for batch in batches:
        yield from zip(batch["sample_index"], batch["input_ids"].tolist(), batch["segments"], strict=True)


def test_single_texts_are_named_by_their_columns(data: Path) -> None:
    rows = list(rows_of_batches(loaded(data, {"local": str(data / "texts"), "split": "train"})))
    texts, num_padded = all_texts(), 0
    assert sorted(row[0] for row in rows) == list(range(len(texts)))
    for index, tokens, (segment,) in rows:
        text = texts[index]
        ids = tokenize(data)(text.text)[:LENGTH]
        assert (segment.source, segment.document_id) == (text.source, text.document_id)
        assert (segment.start, segment.length, segment.document_token_offset) == (0, len(ids), 0)
        assert tokens == [*ids, *[0] * (LENGTH - len(ids))]
        num_padded += len(ids) < LENGTH
    assert num_padded > 5


def test_left_padding_and_columns_of_other_names(data: Path, tmp_path: Path) -> None:
    with MDSWriter(out=str(tmp_path / "mds"), columns={"text": "str", "subset": "str", "key": "int"}) as out:
        for number, text in enumerate(["abc", "de" * LENGTH, ""]):
            out.write({"text": text, "subset": "x", "key": number})
    tokenizer = AutoTokenizer.from_pretrained(str(data / "tokenizer"), padding_side="left")
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    names = {"source_column": "subset", "id_column": "key"}
    rows = {row[0]: row for row in rows_of_batches(loaded(tmp_path, {"local": str(tmp_path / "mds")}, **names))}
    segments = [[(s.start, s.length, s.source, s.document_id) for s in rows[number][2]] for number in range(3)]
    assert segments == [[(LENGTH - 3, 3, "x", "0")], [(0, LENGTH, "x", "1")], []]


def test_streams_and_shorter_sequences(data: Path) -> None:
    """Two streams, one seen twice, of samples cut to `max_seq_len`."""
    streams = {
        "a": {"local": str(data / "packed"), "split": "train", "repeat": 2.0},
        "b": {"local": str(data / "half"), "split": None},
    }
    rows = list(rows_of_batches(loaded(data, {"streams": streams, "max_seq_len": 40})))
    raw = [raw_samples(data / "packed" / "train"), raw_samples(data / "half")]
    places = MdsPlaces([data / "packed" / "train", data / "half"])
    num_first = sum(map(len, raw[0].values()))
    num_second = sum(map(len, raw[1].values()))
    assert len(rows) == 2 * num_first + num_second and len(places) == num_first + num_second
    for index, tokens, segments in rows:
        place = places.place(index)
        assert raw[place.stream][place.shard][place.row]["tokens"].tolist()[:40] == tokens
        assert sum(segment.length for segment in segments) == 40
        for segment in segments:
            text = sources(data)[segment.source, segment.document_id][segment.document_token_offset :]
            assert text[: segment.length] == tokens[segment.start : segment.start + segment.length]


def test_samples_without_names(data: Path) -> None:
    unnamed = {"local": str(data / "unnamed")}
    with pytest.raises(InputError, match=r"sample \d+: expected a column segments, or source and id, found text;"):
        loaded(data, unnamed)
    texts = all_texts()
    raw = raw_samples(data / "unnamed")
    for index, _, (segment,) in rows_of_batches(loaded(data, unnamed, unnamed_ok=True)):
        shard, row = segment.document_id.split("#")
        assert segment.source == "unnamed" and raw[shard][int(row)]["text"] == texts[index].text


def test_a_batch_of_named_and_unnamed_samples(data: Path, tmp_path: Path) -> None:
    """Tokens that name nobody have no segments, and take none from the others."""
    with MDSWriter(out=str(tmp_path / "mds"), columns={"tokens": "ndarray:int32"}) as out:
        for number in range(20):
            out.write({"tokens": np.full(LENGTH, number, np.int32)})
    streams = {"a": {"local": str(tmp_path / "mds")}, "b": {"local": str(data / "half")}}
    batches = loaded(data, {"streams": streams}, unnamed_ok=True)
    assert any(min(batch["sample_index"]) < 20 <= max(batch["sample_index"]) for batch in batches)
    for index, tokens, segments in rows_of_batches(batches):
        assert sum(segment.length for segment in segments) == (0 if index < 20 else LENGTH)
        assert index >= 20 or set(tokens) == {index}


@pytest.mark.parametrize("no_wrap", [False, True])
def test_our_samples_are_llm_foundrys(data: Path, tmp_path: Path, no_wrap: bool) -> None:
    texts = all_texts()
    tokenizer = AutoTokenizer.from_pretrained(str(data / "tokenizer"))
    options = {"max_length": 48, "bos_text": "<s>", "eos_text": "</s>", "no_wrap": no_wrap}
    ours = concatenated(texts, tokenize(data), length=48, bos=[0], eos=[EOS], wrap=not no_wrap)
    tokens = [sample["tokens"].tolist() for sample in ours]
    theirs: Any = ConcatTokensDataset([{"text": text.text} for text in texts], tokenizer, **options)
    assert tokens == [sample["tokens"].tolist() for sample in theirs] and len(tokens) > 50
    if not no_wrap:
        paths = []
        for number, text in enumerate(texts):
            paths.append(tmp_path / f"{number}.txt")
            paths[-1].write_text(text.text, encoding="utf-8", newline="")
        files: Any = ConcatTokensFromFilesDataset(list(map(str, paths)), tokenizer, **options)
        assert tokens == [sample["tokens"].tolist() for sample in files]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    prepare(directory)
    with MDSWriter(out=str(directory / "unnamed"), columns={"text": "str"}, size_limit=SHARD_BYTES) as out:
        for text in all_texts():
            out.write({"text": text.text})
    columns = {"tokens": "ndarray:int32", "segments": "json"}
    with MDSWriter(out=str(directory / "half"), columns=columns, size_limit=SHARD_BYTES) as out:
        for sample in concatenated(all_texts()[::2], tokenize(directory), length=LENGTH, eos=[EOS]):
            out.write(sample)
    return directory
