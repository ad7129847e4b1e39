"""A sequence's row, neighbours, token texts and loss mask, and what a run misses, against the export read row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from indexer.build.update import IndexOptions, update_index
from search_api import Settings, create_app
from tests.conftest import byte_level_bpe, read_documents
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks import Segment, StepStatus
from train_hooks.export_format.records import Row
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

LENGTH, IGNORED = 32, -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server, and the rows of its run by address."""

    client: TestClient
    rows: dict[str, Row]

    def sequence(self, address: str, *, tokens: bool = False) -> dict[str, Any]:
        response = self.client.get(f"/v1/sequences/{address}", params={"tokens": tokens})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


def made_step(tokens: np.ndarray, number: int) -> MadeStep:
    """Two ranks, two micro-batches of two; labels are the next tokens, of rank 0 only where the token is even."""
    labels = np.roll(tokens, -1, axis=1).astype(np.int64)
    labels[0] = np.where(tokens[0] % 2 == 0, labels[0], IGNORED)
    mask = (tokens % 3 == 0).astype(np.int8)
    rows = {rank: [tokens[rank * 4 : rank * 4 + 2], tokens[rank * 4 + 2 : rank * 4 + 4]] for rank in range(2)}
    own = [[Segment(start=4, length=20, source="s", document_id=f"d{number}", document_token_offset=0)]] * 2
    return MadeStep(
        microbatches=rows,
        segments={rank: [own, own] for rank in range(2)},
        status=StepStatus.SKIPPED_UPDATE if number == 3 else StepStatus.APPLIED,
        losses={rank: [[float(number), float("nan")]] * 2 for rank in range(2)},
        tensors={
            0: [{"labels": labels[at : at + 2]} for at in (0, 2)],
            1: [{"labels": labels[at : at + 2], "loss_mask": mask[at : at + 2]} for at in (4, 6)],
        },
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("details")
    texts = [*read_documents("devils-dictionary", 5).values(), *read_documents("tatoeba-ja", 3).values()]
    tokenizer = byte_level_bpe(texts, 600)
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = np.array(tokenizer.encode(" ".join(texts)).ids)
    steps = [np.resize(ids[at * 70 :], (8, LENGTH)) for at in range(8)]
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=600, run_id="details", tokenizer=directory / "tokenizer.json", config={}
    )
    run_dir: Path = directory / "run"
    make_attempt(run_dir, spec, [made_step(tokens, n) for n, tokens in enumerate(steps[:6], 1)], num_writers=2)
    resume = ResumeToken(run_id="details", attempt=1, global_step=4)
    again = [made_step(tokens, n) for n, tokens in enumerate(steps[4:], 5)]
    make_attempt(run_dir, spec, again, num_writers=2, resume=resume)
    update_index(run_dir, IndexOptions(shard_tokens=LENGTH * 20))
    rows = {str(row.address): row for row in all_rows(run_dir)}
    with TestClient(create_app(Settings(run_dirs=(run_dir,)))) as client:
        yield Served(client=client, rows=rows)


def test_rows_are_those_of_the_export(served: Served) -> None:
    for address, row in served.rows.items():
        found = served.sequence(address)
        assert (found["status"], found["leaf"], found["sample_index"]) == (row.status, row.leaf.hex(), None)
        assert found["loss"] == (None if row.loss is None or np.isnan(row.loss) else row.loss)
        assert found["token_texts"] is None and found["loss_mask"] is None


def test_neighbours_are_those_of_the_rank(served: Served) -> None:
    for attempt in (1, 2):
        for rank in (0, 1):
            walk = [
                a for a, row in served.rows.items() if (row.address.attempt, row.address.dp_rank) == (attempt, rank)
            ]
            assert len(walk) > 10
            for at, address in enumerate(walk):
                found = served.sequence(address)
                assert found["before"] == (walk[at - 1] if at else None)
                assert found["after"] == (walk[at + 1] if at + 1 < len(walk) else None)


def test_tokens_and_masks(served: Served) -> None:
    kinds = set()
    for address, row in served.rows.items():
        found = served.sequence(address, tokens=True)
        assert "".join(found["token_texts"]) == found["text"] and len(found["token_texts"]) == LENGTH
        kinds.add(found["loss_mask_of"])
        tokens = row.tokens.astype(int)
        if found["loss_mask_of"] == "loss_mask":
            assert row.address.dp_rank == 1 and found["loss_mask"] == (tokens % 3 == 0).tolist()
        elif (row.address.microbatch, row.address.slot) == (0, 0):
            assert found["loss_mask"] == (tokens % 2 == 0).tolist()
        else:
            assert found["loss_mask"] == [True] * LENGTH
    assert kinds == {"loss_mask", "labels"}


def test_what_a_run_misses(served: Served) -> None:
    found = served.client.get("/v1/runs/details/gaps").json()
    assert (found["gaps"], found["num_gaps"], found["num_steps"], found["num_missing"]) == ([], 0, 8, 0)
    assert (found["num_superseded"], found["num_without_update"]) == (2, 1)
