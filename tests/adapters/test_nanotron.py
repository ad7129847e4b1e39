"""nanotron, its own source: its trainer and loaders on two ranks."""

import os
import subprocess
import sys
import sysconfig
from dataclasses import make_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, TensorDataset

from tests.adapters import job
from tests.adapters.checks import (
    Job,
    check_matched,
    check_seen,
    crash_and_resume,
    exported,
    logged,
    metrics_of,
    run_once,
    verify,
)
from tests.adapters.data.texts import EOS, SOURCES, bytes_tokenizer, check_documents, texts
from tests.adapters.jobs.without_flash_attention import without_flash_attention
from tests.adapters.megatron_loops import exported as exported_by
from tests.adapters.megatron_loops import trained
from tests.train_hooks.hook.torchrun import ROOT
from train_hooks.documents.datatrove_names import name_documents
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader

CHECKOUT, DATATROVE = os.environ.get("KISEKI_NANOTRON", ""), os.environ.get("KISEKI_DATATROVE", "")
pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="KISEKI_NANOTRON: the path of a checkout of nanotron, commit 2411b02"),
    pytest.mark.skipif(
        not DATATROVE, reason="KISEKI_DATATROVE: that of datatrove, commit 2c895af, which nanotron reads with"
    ),
    pytest.mark.skipif(find_spec("datatrove") is None, reason="make test-adapters has datatrove"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
TEXTS = [text for source in SOURCES for text in texts(source)]


def prepare(directory: Path) -> dict[tuple[str, str], list[int]]:
    """Tokenizer, two folders of named tokenized files; the tokens of every document."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    bytes_tokenizer(directory / "tokenizer")
    path = directory / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    ids = {(text.source, text.document_id): [*tokenizer.encode(text.text).ids, EOS] for text in TEXTS}
    for number, folder in enumerate(("s3/a", "s3/b")):
        for part in range(2):
            step = DocumentTokenizer(str(directory / folder), str(path), eos_token="</s>")
            documents = (Document(text=text.text, id=text.document_id) for text in TEXTS[2 * number + part :: 4])
            step.run(documents, rank=part, world_size=2)
    files = list(directory.glob("s3/*/*.ds"))
    assert len(files) == 4
    name_documents(files, TEXTS, lambda text: [*tokenizer.encode(text).ids, EOS], token_size=2)
    for metadata in directory.glob("s3/*/*.metadata"):  # it names a tokenizer by a path that nanotron does not know
        metadata.unlink()
    return ids


def compile_helpers() -> None:
    """Its own Makefile, for this Python."""
    includes = subprocess.run(
        [sys.executable, "-m", "pybind11", "--includes"], check=True, capture_output=True, text=True
    ).stdout.strip()
    directory, suffix = Path(CHECKOUT, "src/nanotron/data/nemo_dataset"), sysconfig.get_config_var("EXT_SUFFIX")
    subprocess.run(
        ["make", "-C", directory, f"LIBEXT={suffix}", f"CPPFLAGS={includes}"], check=True, capture_output=True
    )


def environment() -> dict[str, str]:
    """Of the job; nanotron runs `make` with the first python3."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PYTHONPATH": path, "PATH": programs, "HF_HUB_OFFLINE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


@pytest.mark.parametrize(
    "options", [{}, {"ZERO": "1", "STAGES": "1"}], ids=["one stage", "ZeRO-1, a second stage on resuming"]
)
def test_training(tmp_path: Path, options: dict[str, str]) -> None:
    """A blend of two folders, accumulation, workers, a crash, a resume: the forwards got what the rows give."""
    sources = prepare(tmp_path)
    compile_helpers()
    done = trained("nanotron_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * job.RANKS)
    crash_and_resume(done, **options, **environment())
    log, export = logged(done.run / "log"), exported(done.run)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.RESUME_STEP <= last < job.KILLED_STEP
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        check_forward(log[key], part.batch)
        check_documents(part, "input_ids", sources)
    assert not all(bool(seen["label_mask"].all()) for seen in log.values())
    check_order(done, export)
    metrics = metrics_of(done.run)
    assert all(metrics[step].keys() >= {"loss", "lr", "grad_norm"} for step in range(1, job.STEPS + 1))
    assert RunReader(done.run).attempt(2).info.resume_step == job.RESUME_STEP
    check_matched(done.run, "slice")
    check_seen(done.run, "input_ids", "positions")
    assert verify(done.run) == 0


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two ranks are fed the same, and one writes it."""
    sources = prepare(tmp_path)
    done = trained("nanotron_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    run_once(done, TENSOR="2", **environment())
    log, export = logged(done.run / "log"), exported_by(done.run, 1)
    assert {(*key[:2], rank, key[3]) for key in export for rank in (0, 1)} == set(log) and len(log) == 32
    for key, part in export.items():
        for rank in (0, 1):
            check_forward(log[*key[:2], rank, key[3]], part.batch)
        check_documents(part, "input_ids", sources)
    check_order(done, export)
    check_matched(done.run, "slice")
    check_seen(done.run, "input_ids", "positions")
    assert verify(done.run) == 0


def test_a_dataset_that_hides_what_it_packs(tmp_path: Path) -> None:
    """Documents end where the tokens say so, whoever they are."""
    prepare(tmp_path)
    done = trained("nanotron_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * job.RANKS)
    run_once(done, HIDDEN="1", **environment())
    log, export = logged(done.run / "log"), exported(done.run)
    assert set(log) == set(export)
    for key, part in export.items():
        for tokens, segments in zip(part.batch["input_ids"].tolist(), part.segments, strict=True):
            found = [tokens[segment.start : segment.start + segment.length] for segment in segments]
            assert [part for part in found if part != [EOS]] == split(tokens)
            assert {(segment.source, segment.document_id) for segment in segments} == {("identity unknown", "")}
        assert torch.equal(log[key]["input_ids"], part.batch["input_ids"][:, :-1]), key
    check_order(done, export)
    check_matched(done.run, "slice")
    for rank in range(job.RANKS):
        text = (done.run / f"warnings{rank}.txt").read_text(encoding="utf-8")
        assert "Hidden hides what it packs" in text and f"token {EOS}" in text and "identity unknown" in text


def test_loaders_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is written."""
    monkeypatch.setattr(sys, "path", [*sys.path, CHECKOUT + "/src"])
    without_flash_attention()
    from train_hooks.adapters.nanotron import exported

    unknown: list[Any] = [iter(()), DataLoader(TensorDataset(torch.zeros(1)), batch_size=None)]
    for loader in unknown:
        with pytest.raises(InputError, match="expected a torch DataLoader over a map-style dataset"):
            exported(None, {"all": loader}, "nowhere")
    with pytest.raises(InputError, match="expected loaders by data stage"):
        exported(None, [], "nowhere")  # type: ignore[arg-type]
    monkeypatch.setattr("train_hooks.adapters.nanotron.DataStageMetadata", make_dataclass("Older", ["name"]))
    with pytest.raises(InputError, match="expected nanotron of 2025 or later"):
        exported(None, {}, "nowhere")


def split(tokens: list[int]) -> list[list[int]]:
    """What ends with EOS, or with the sequence, but for EOS alone."""
    parts: list[list[int]] = [[]]
    for token in tokens:
        parts[-1].append(token)
        if token == EOS:
            parts.append([])
    return [part for part in parts if part not in ([], [EOS])]


def check_forward(seen: dict[str, torch.Tensor], rows: Any) -> None:
    """Inputs, labels, position ids and mask, as the collator makes them of a sample."""
    tokens, positions = rows["input_ids"], rows["positions"]
    assert torch.equal(seen["input_ids"], tokens[:, :-1]) and torch.equal(seen["label_ids"], tokens[:, 1:])
    assert torch.equal(seen["position_ids"], positions[:, :-1])
    assert torch.equal(seen["label_mask"], positions[:, 1:] != 0)


def check_order(done: Job, export: dict[Any, Any]) -> None:
    """Each global batch is whole, and in the order of the blend."""
    steps: dict[tuple[int, int], list[int]] = {}
    for (attempt, step, _, _), part in export.items():
        steps.setdefault((attempt, step), []).extend(part.sample_index)
    for (_, step), samples in steps.items():
        assert sorted(samples) == list(range((step - 1) * done.rows_a_step, step * done.rows_a_step))
