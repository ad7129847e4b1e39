"""What ordinary programs do around the hook: no commit at all, a default device, pickling, copies, a tokenizer with holes."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.distributed.checkpoint.stateful import Stateful

from tests.train_hooks.hook.toy import (
    LENGTH,
    VOCAB,
    Toy,
    attach,
    exported_ids,
    microbatch,
    microbatches,
    same,
    train_step,
)
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import RunSpec, open_or_create_run
from train_hooks.hook.export.exporter import ExporterOptions

ROOT = Path(__file__).parents[3]


class Resumable:
    """A loader with a state, as torchdata's StatefulDataLoader is."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.position < 3:
            self.position += 1
            yield microbatch(self.position)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.position = state_dict["position"]


def test_a_training_that_never_commits_is_told_at_its_close(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path)
    for batch in hook.wrap(microbatches(3)):
        train_step(model, [batch])
    with pytest.raises(ExportStopped, match="3 micro-batches were consumed and no step was ever committed"):
        hook.close()
    hook.close()
    report = verify(tmp_path)

    assert report.exit_code == 3
    assert "it never calls hook.commit(step)" in report.findings[0].message


def test_a_training_that_never_commits_is_told_at_the_end_of_the_process(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tests.train_hooks.hook.toy import Toy, attach, microbatches, train_step
model = Toy()
hook = attach(model, Path(sys.argv[1]))
for batch in hook.wrap(microbatches(3)):
    train_step(model, [batch])
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "3 micro-batches were consumed and no step was ever committed" in ended.stderr


def test_an_error_in_the_first_step_is_not_hidden_by_the_close(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path)

    def train() -> None:
        try:
            for batch in hook.wrap(microbatches(1)):
                train_step(model, [batch])
                raise ZeroDivisionError
        finally:
            hook.close()

    with pytest.raises(ZeroDivisionError):
        train()


def test_what_a_step_may_stage_is_bounded(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path, options=ExporterOptions(max_step_bytes=20_000))

    def train() -> None:
        for batch in hook.wrap(microbatches(1000)):
            train_step(model, [batch])

    with pytest.raises(ExportStopped, match=r"micro-batches \(0 MiB\) were consumed after step 0 and not committed"):
        train()
    with pytest.raises(ExportStopped, match="no step was ever committed"):
        hook.close()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_is_not_that_of_our_buffers(tmp_path: Path, device: str) -> None:
    """A buffer on another device was written to by its address, which ended the process."""
    model = Toy()
    batches = list(microbatches(3))
    hook = attach(model, tmp_path)
    torch.set_default_device(device)
    try:
        for step, batch in enumerate(hook.wrap(batches), 1):
            model.seen.append(batch["input_ids"].clone())
            hook.consume()
            hook.commit(step)
        hook.close()
    finally:
        torch.set_default_device(None)

    assert same(exported_ids(tmp_path), [batch["input_ids"] for batch in batches])


def test_a_wrapped_loader_is_what_it_wraps(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        plain, loader = hook.wrap([microbatch(1)]), hook.wrap(Resumable())
        assert not isinstance(plain, Stateful)
        assert isinstance(loader, Stateful)
        assert isinstance(iter(loader), Stateful) is False
        for step, batch in enumerate(loader, 1):
            train_step(model, [batch])
            hook.commit(step)
            if step == 2:
                break
        assert loader.state_dict() == {"position": 2}
        loader.load_state_dict({"position": 1})
        assert loader.position == 1
        assert type(pickle.loads(pickle.dumps(loader))) is Resumable
        copied = copy.deepcopy(loader)
        assert copied.position == 1
        train_step(model, [next(iter(copied))])
        hook.commit(3)
    assert same(exported_ids(tmp_path), model.seen)


def test_a_model_can_be_saved_and_copied_and_the_copy_is_not_listened_to(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            train_step(model, [batch])
            teacher = copy.deepcopy(model)
            train_step(teacher, [microbatch(100)])
            hook.commit(step)
        saved = io.BytesIO()
        torch.save(model, saved)
    saved.seek(0)
    again = torch.load(saved, weights_only=False)
    train_step(again, [microbatch(3)])

    assert same(exported_ids(tmp_path), model.seen)


def tokenizer_with(highest: int, path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": highest}, unk_token="a"))
    tokenizer.save(str(path))
    return path


def test_a_vocabulary_with_holes_is_refused_before_the_training(tmp_path: Path) -> None:
    """tokenizer.get_vocab_size() is below the highest id: the index refused such a run after the training."""
    path = tokenizer_with(VOCAB, tmp_path / "tokenizer.json")
    with pytest.raises(
        InputError, match=f"vocab_size: expected more than {VOCAB}, the highest token id of .*, found {VOCAB}"
    ):
        attach(Toy(), tmp_path / "run", tokenizer=path)
    assert not (tmp_path / "run").exists()
    path.write_bytes(b"no tokenizer")
    with pytest.raises(InputError, match=r"expected a tokenizer\.json of Hugging Face's tokenizers"):
        attach(Toy(), tmp_path / "run", tokenizer=path)
    with pytest.raises(InputError, match="expected a tokenizer file at"):
        attach(Toy(), tmp_path / "run", tokenizer=tmp_path / "none.json")
    attach(Toy(), tmp_path / "run", tokenizer=tokenizer_with(VOCAB - 1, path)).close()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("run-1", "run-1"), ("my run", "my-run"), ("実験", "run-"), ("試験", "run-"), ("v2 試", "v2-")],
)
def test_directories_that_differ_have_run_ids_that_differ(tmp_path: Path, name: str, expected: str) -> None:
    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCAB, config={})
    ids = {open_or_create_run(OsFileSystem(), tmp_path / each, spec).run_id for each in ("実", "験", "run", name)}

    assert len(ids) == 4
    assert any(run_id.startswith(expected) for run_id in ids)


def test_a_mesh_whose_axis_is_unknown_is_an_error_that_says_how_to_name_it() -> None:
    from types import SimpleNamespace

    from train_hooks.hook.election import mesh_of
    from train_hooks.hook.writer_rank import mesh_coordinates, writer_rank

    def model(*names: str) -> Any:
        mesh = SimpleNamespace(mesh_dim_names=names, get_coordinate=lambda: [0] * len(names), size=lambda _: 2)
        return SimpleNamespace(parameters=lambda: [SimpleNamespace(device_mesh=mesh)])

    for names in (("mp",), ("dp", "tensor_parallel"), ("dp_shard_cp",)):
        with pytest.raises(InputError, match=rf"mesh axis '{names[-1]}': expected one of .*data_axes="):
            writer_rank(mesh_coordinates(mesh_of(model(*names))))
    assert mesh_of(model("dp_replicate", "dp_shard")) is None
    assert mesh_of(model()) is None
