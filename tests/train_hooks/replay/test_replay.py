"""Training from the export is the training: the same losses and weights to the last bit, the same global batches."""

import copy
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.support.export_maker import MadeStep, make_attempt
from tests.train_hooks.hook.toy import LENGTH, VOCAB, Toy, attach, exported_ids, microbatch, rows, same
from train_hooks import StepStatus
from train_hooks.export_format.errors import DamageError, IncompleteError, InputError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader, StepFrame
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.replay import ReplayDataset, ReplayMicrobatches
from train_hooks.replay.lineage_reader import LazyFrame

SPEC = RunSpec(sequence_length=LENGTH, vocab_size=VOCAB, run_id="run", config={})
SKIPPED_STEP, NUM_STEPS = 4, 8
Loss = dict[int, list[float]]


class Trainer:
    """Model, optimizer and what they came to; `update=False` as after an fp16 overflow."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.model: nn.Module = Toy()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.losses: Loss = {}

    def step(self, number: int, batches: Iterable[dict[str, Tensor]], *, update: bool) -> None:
        self.losses[number] = []
        for batch in batches:
            loss = self.model(batch["input_ids"], batch["labels"])
            loss.backward()
            self.losses[number].append(loss.item())
        if update:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def checkpoint(self) -> dict[str, object]:
        state: dict[str, object] = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(state)

    def load(self, state: dict[str, object]) -> None:
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]


def _train(trainer: Trainer, run_dir: Path, first: int, last: int, seed: int, resume: object) -> tuple[object, object]:
    """Steps first … last with a checkpoint after step 5 if it is among them; the attempt ends as by a crash."""
    kept: tuple[object, object] = (None, None)
    hook = attach(trainer.model, run_dir, resume=resume)
    batches = iter(hook.wrap(microbatch(seed + index, documents=True) for index in range(100)))
    for step in range(first, last + 1):
        skipped = step == SKIPPED_STEP
        trainer.step(step, [next(batches), next(batches)], update=not skipped)
        hook.commit(step, status="skipped_update" if skipped else "applied")
        if step == 5:
            hook.checkpoint_barrier(step)
            kept = (trainer.checkpoint(), hook.state_dict())
    hook.checkpoint_barrier(last)
    hook.close()
    return kept


@pytest.fixture
def trained(tmp_path: Path) -> Trainer:
    """Seven steps, a crash, and from step 5 on again with other data, to step 8. Losses are those that count."""
    trainer = Trainer()
    state, token = _train(trainer, tmp_path, 1, 7, 0, None)
    trainer = _resumed(trainer, state)
    _train(trainer, tmp_path, 6, NUM_STEPS, 500, token)
    return trainer


def _resumed(before: Trainer, state: object) -> Trainer:
    trainer = Trainer()
    trainer.load(state)  # type: ignore[arg-type]
    trainer.losses = {step: losses for step, losses in before.losses.items() if step <= 5}
    return trainer


def _replayed(run_dir: Path, **options: int) -> Trainer:
    trainer = Trainer()
    for step in ReplayDataset(run_dir, **options).steps():  # type: ignore[arg-type]
        batches = [part.batch for part in step.microbatches]
        trainer.step(step.global_step, batches, update=step.status is StepStatus.APPLIED)
    return trainer


def _weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach() for parameter in trainer.model.parameters()]


def test_losses_and_weights_are_bit_identical_across_a_crash_and_rollback(trained: Trainer, tmp_path: Path) -> None:
    replayed = _replayed(tmp_path)
    assert sorted(replayed.losses) == list(range(1, NUM_STEPS + 1))
    assert replayed.losses == trained.losses
    assert same(_weights(replayed), _weights(trained))
    assert replayed.losses != _replayed(tmp_path, attempt=1).losses


def test_from_a_checkpoint_on(trained: Trainer, tmp_path: Path) -> None:
    trainer = Trainer()
    for step in ReplayDataset(tmp_path, attempt=1, last_step=5).steps():
        trainer.step(step.global_step, [part.batch for part in step.microbatches], update=step.global_step != 4)
    assert list(trainer.losses) == [1, 2, 3, 4, 5]
    for step in ReplayDataset(tmp_path, first_step=6).steps():
        assert step.attempt == 2
        trainer.step(step.global_step, [part.batch for part in step.microbatches], update=True)
    assert same(_weights(trainer), _weights(trained))


@pytest.mark.usefixtures("trained")
def test_documents_and_status_come_along(tmp_path: Path) -> None:
    parts = list(ReplayDataset(tmp_path))
    assert [part.status for part in parts].count(StepStatus.SKIPPED_UPDATE) == 2
    whole = microbatch(501, documents=True)
    part = next(part for part in parts if part.global_step == 6 and part.microbatch == 1)
    assert part.segments == tuple(map(tuple, whole["segments"]))
    assert part.sample_index == tuple(whole["sample_index"].tolist())
    assert [str(address) for address in part.addresses] == [f"{tmp_path.name}/a2/s6/r0/m1/q{slot}" for slot in (0, 1)]


@pytest.mark.usefixtures("trained")
def test_as_a_loader_and_by_key(tmp_path: Path) -> None:
    loaded = [part.batch["input_ids"] for part in DataLoader(ReplayDataset(tmp_path), batch_size=None, num_workers=1)]
    assert same(loaded, exported_ids(tmp_path))
    by_key = ReplayMicrobatches(tmp_path)
    assert len(by_key) == 2 * NUM_STEPS
    assert same([by_key[index].batch["input_ids"] for index in range(len(by_key))], loaded)
    assert torch.equal(by_key[6, 0, 1].batch["labels"], microbatch(501)["labels"])
    for key in ((6, 0, 2), (6, 1, 0), (9, 0, 0)):
        with pytest.raises(KeyError):
            by_key[key]
    with pytest.raises(InputError, match="at most one loader worker"):
        list(DataLoader(ReplayDataset(tmp_path), batch_size=None, num_workers=2))


def _made(run_dir: Path, *, num_writers: int = 2, num_steps: int = 3) -> None:
    """Two micro-batches of two sequences a rank and step."""
    steps = [
        MadeStep(
            microbatches={
                rank: [microbatch(1000 * step + 10 * rank + index)["input_ids"].numpy() for index in range(2)]
                for rank in range(num_writers)
            }
        )
        for step in range(num_steps)
    ]
    make_attempt(run_dir, SPEC, steps, num_writers=num_writers)


def _sequences(run_dir: Path, num_ranks: int, micro_batch: int | None) -> dict[int, Counter[tuple[int, ...]]]:
    found: dict[int, Counter[tuple[int, ...]]] = {}
    for rank in range(num_ranks):
        for part in ReplayDataset(run_dir, dp_rank=rank, num_ranks=num_ranks, micro_batch=micro_batch):
            assert part.batch["input_ids"].shape[0] == (micro_batch or 8 // num_ranks)
            assert part.batch["input_ids"].dtype == torch.int64
            found.setdefault(part.global_step, Counter()).update(map(tuple, part.batch["input_ids"].tolist()))
    return found


def test_the_same_global_batches_on_any_number_of_ranks(tmp_path: Path) -> None:
    _made(tmp_path)
    expected: dict[int, Counter[tuple[int, ...]]] = {}
    for row in rows(tmp_path):
        expected.setdefault(row.address.global_step, Counter())[tuple(row.tokens.tolist())] += 1
    assert len(expected) == 3
    for num_ranks, micro_batch in ((1, 8), (1, 2), (2, 2), (2, 4), (2, 1), (4, 1), (4, 2), (4, None), (8, 1)):
        assert _sequences(tmp_path, num_ranks, micro_batch) == expected


def test_the_recorded_layout_by_its_numbers(tmp_path: Path) -> None:
    _made(tmp_path)
    for rank in range(2):
        recorded = [part.batch["input_ids"] for part in ReplayDataset(tmp_path, dp_rank=rank)]
        dealt = [part.batch["input_ids"] for part in ReplayDataset(tmp_path, dp_rank=rank, num_ranks=2, micro_batch=2)]
        assert same(recorded, dealt)
        assert len(recorded) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dp_rank": 2}, "recorded on 2 data-parallel ranks, there is no dp_rank 2; give num_ranks="),
        ({"num_ranks": 3}, "expected a multiple of 3 ranks × 2 sequences, found 8"),
        ({"num_ranks": 2, "micro_batch": 3}, "expected a multiple of 2 ranks × 3"),
        ({"micro_batch": 3}, "expected num_ranks with it"),
        ({"num_ranks": 2, "dp_rank": 2}, "expected 0 ≤ dp_rank < num_ranks"),
        ({"verify": "nothing"}, "expected 'leaf' or 'frame'"),
        ({"attempt": 9}, "there is no attempt 9"),
    ],
)
def test_what_cannot_be_replayed_as_asked(options: dict[str, int], message: str, tmp_path: Path) -> None:
    _made(tmp_path, num_steps=1)
    with pytest.raises(InputError, match=message):
        list(ReplayDataset(tmp_path, **options))  # type: ignore[arg-type]


def test_steps_that_are_not_there(tmp_path: Path) -> None:
    _made(tmp_path, num_steps=2)
    with pytest.raises(IncompleteError, match="step 3 is not acknowledged by all of 2 writers"):
        list(ReplayDataset(tmp_path, last_step=3))


def test_a_tensor_of_the_whole_micro_batch_cannot_be_dealt_out(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([{**microbatch(1), "cu_seqlens": torch.tensor([0, 3, 32], dtype=torch.int32)}]):
            model(batch["input_ids"]).backward()
        hook.commit(1)
    (part,) = ReplayDataset(tmp_path)
    assert part.batch["cu_seqlens"].tolist() == [0, 3, 32]
    with pytest.raises(InputError, match="cannot be dealt out anew"):
        list(ReplayDataset(tmp_path, num_ranks=1, micro_batch=1))


@pytest.mark.parametrize("verify", ["leaf", "frame"])
def test_damage_is_found_before_it_is_trained_on(tmp_path: Path, verify: str) -> None:
    _made(tmp_path)
    file = next(ExportPaths(tmp_path).attempt_dir(1).glob("rows-r00001-*.arrows"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DamageError):
        list(ReplayDataset(tmp_path, dp_rank=1, verify=verify))  # type: ignore[arg-type]


def test_leaves_are_checked(tmp_path: Path) -> None:
    _made(tmp_path)
    secret = ExportPaths(tmp_path).secret
    secret.write_text("00" * 32 + "\n")
    assert len(list(ReplayDataset(tmp_path, verify="frame"))) == 6
    with pytest.raises(DamageError, match=r"does not match its leaf|SHA-256"):
        list(ReplayDataset(tmp_path))


def test_a_gap_is_not_passed_over(tmp_path: Path) -> None:
    system = OsFileSystem()
    run = open_or_create_run(system, tmp_path, SPEC)
    attempt = claim_attempt(system, tmp_path, run, num_writers=1, resume=None, config={})
    writer = RankWriter(system, ExportPaths(tmp_path).attempt_dir(1), run, attempt, 0)
    options = ExporterOptions(when_full="drop", max_queue_bytes=1, group_interval_s=3600.0)
    exporter = Exporter(writer, run, attempt, 0, RunReader(tmp_path).secret(), options)
    for step in (1, 2):
        exporter.stage(StagedMicrobatch(tokens=microbatch(step)["input_ids"].numpy()))
        exporter.commit(step)
    exporter.close()
    with pytest.raises(IncompleteError, match="step 2 of dp_rank 0 has a gap"):
        list(ReplayDataset(tmp_path))


def test_one_step_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _made(tmp_path)
    read: list[int] = []
    original = LazyFrame.read

    def counting(place: LazyFrame) -> StepFrame:
        read.append(place.ack.global_step)
        return original(place)

    monkeypatch.setattr(LazyFrame, "read", counting)
    steps = ReplayDataset(tmp_path, num_ranks=1).steps()
    assert read == []
    next(steps)
    assert read == [1, 1]
