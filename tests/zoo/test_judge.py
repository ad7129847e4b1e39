"""The judge itself: it must see whatever differs between record and log."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.zoo.job import Job
from tests.zoo.judge import differences, read_record
from tests.zoo.log import Forward, ForwardLog
from tests.zoo.models import Lm, batches, sgd, update
from tests.zoo.play import play
from tests.zoo.table import Loop


def train(job: Job) -> None:
    """Two micro-batches a step, of which the forward gets labels, and not weights."""
    model = Lm()
    hook, optimizer = job.attach(model), sgd(model)
    data = iter(hook.wrap({**batch, "weights": torch.rand(2, 16)} for batch in batches(6)))
    for step in (1, 2, 3):
        for _ in range(2):
            batch = next(data)
            update(optimizer, model(batch["input_ids"], labels=batch["labels"]))
            hook.trained_on(bias=torch.full((2, 3), float(step)))
        hook.commit(step)


def first(log: ForwardLog) -> Forward:
    """The first forward of step 2."""
    return log.steps[2].forwards[0]


def flip(tensor: torch.Tensor) -> None:
    """Change its last element."""
    tensor[-1, -1] += 1


def other_sample_index(log: ForwardLog) -> None:
    log.fetched[2] = replace(log.fetched[2], sample_index=(90, 91))


def other_documents(log: ForwardLog) -> None:
    segments = log.fetched[2].segments
    assert segments is not None
    log.fetched[2] = replace(log.fetched[2], segments=segments[::-1])


CHANGES: dict[str, tuple[Callable[[ForwardLog], object], str]] = {
    "a token": (lambda log: flip(first(log).named["input_ids"]), "is recorded, and the forward got"),
    "a label": (lambda log: flip(first(log).named["labels"]), "'labels' has evidence forward, and the forward got"),
    "a weight": (lambda log: flip(log.fetched[2].tensors["weights"]), "'weights' has evidence loader, and the loader"),
    "what was declared": (lambda log: flip(first(log).declared["bias"]), "'bias' has evidence declared, and the loop"),
    "a forward too many": (lambda log: log.steps[2].forwards.append(first(log)), "2 micro-batches are recorded"),
    "a forward too few": (lambda log: log.steps[2].forwards.pop(), "2 micro-batches are recorded, the forwards got 1"),
    "their order": (lambda log: log.steps[2].forwards.reverse(), "is recorded, and the forward got"),
    "another dtype": (
        lambda log: first(log).named.update(input_ids=first(log).named["input_ids"].int()),  # type: ignore[attr-defined]
        "and the forward got int32",
    ),
    "another shape": (
        lambda log: first(log).named.update(input_ids=first(log).named["input_ids"].flatten()),  # type: ignore[attr-defined]
        "and the forward got [32]",
    ),
    "a row of another place": (other_sample_index, "sample_index 4, the loader said {90}"),
    "other documents": (other_documents, "other documents than the loader's"),
    "a tensor that nobody has": (lambda log: log.fetched[2].tensors.update(x=torch.ones(2)), "it has the tensors"),  # type: ignore[attr-defined]
    "a status": (lambda log: setattr(log.steps[2], "status", "rerun"), "status applied, not rerun"),
    "a step that failed": (lambda log: setattr(log, "failed_step", 2), "the loop has no such step"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_seen(name: str, tmp_path: Path) -> None:
    loop, job = Loop(name="judged", run=train), Job(tmp_path)
    loop.train(job)
    assert job.close() is None
    log, record = job.logs["run"], read_record(tmp_path / "run", {"input_ids"})
    assert differences(record, 0, log, loop) == []

    change, message = CHANGES[name]
    change(log)
    found = differences(record, 0, log, loop)
    assert found
    assert all(what.startswith("step 2") for what in found)
    assert message in "\n".join(found)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"matched": "slice"}, "matched whole, not slice"),
        ({"evidence": {"labels": "loader"}}, "'labels' has evidence forward, not loader"),
        ({"evidence": {"nobody": "loader"}}, "'nobody' has evidence None, not loader"),
        ({"gaps": (3,)}, "gap None, expected gaps (3,)"),
    ],
)
def test_what_the_loop_expects_is_compared(tmp_path: Path, expected: dict[str, object], message: str) -> None:
    outcome = play(Loop(name="judged", run=train, **expected), tmp_path)  # type: ignore[arg-type]
    assert outcome.verdict == "silent"
    assert message in outcome.silent[0]
