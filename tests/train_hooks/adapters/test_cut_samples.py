"""Rows cut out of samples: where each comes from, whatever the tokens are; and what becomes of it in an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train_hooks.hook.toy import LENGTH, VOCAB, Toy, attach, rows
from train_hooks import Segment
from train_hooks.adapters.cut_samples import cut_with_places
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.verify.run import verify
from train_hooks.replay import ReplayDataset

Cut = Callable[[dict[str, Any]], dict[str, Any]]


def cutting(stretches: list[tuple[int, int]], length: int) -> Cut:
    """Leaves the stretches [(sample, start)] of so many tokens, in this order."""

    def cut(batch: dict[str, Any]) -> dict[str, Any]:
        text = batch["text"]
        batch["text"] = torch.stack([text[sample, start : start + length] for sample, start in stretches])
        return batch

    return cut


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int]], int]:
    samples, length = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    left = draw(st.integers(1, length))
    one = st.tuples(st.integers(0, samples - 1), st.integers(0, length - left))
    return samples, length, draw(st.lists(one, min_size=1, max_size=9)), left


@settings(max_examples=100, deadline=None)
@given(cut=cuts(), data=st.data())
def test_any_stretches(cut: tuple[int, int, list[tuple[int, int]], int], data: st.DataObject) -> None:
    """Overlapping, repeated, out of order; most tokens are the same."""
    samples, length, stretches, left = cut
    text = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=samples * length, max_size=samples * length)))
    batch = {
        "text": text.view(samples, length),
        "sample_index": torch.arange(samples) * 10 + 7,
        "index": torch.arange(2),
    }
    found = cut_with_places(cutting(stretches, left), batch, "text")
    assert found["sample_index"].tolist() == [sample * 10 + 7 for sample, _ in stretches]
    assert found["sample_start"].tolist() == [start for _, start in stretches]
    assert torch.equal(found["text"], cutting(stretches, left)(dict(batch))["text"])
    assert found["index"] is batch["index"] and batch["text"].shape == (samples, length)


def test_what_is_not_cut_stays_as_it_is() -> None:
    batch = {"text": torch.zeros(2, 5, dtype=torch.int64), "sample_index": torch.tensor([4, 9])}
    found = cut_with_places(lambda given: given, batch, "text")
    assert found["text"] is batch["text"] and found["sample_index"].tolist() == [4, 9] and "sample_start" not in found


@pytest.mark.parametrize(
    "cut",
    [
        lambda text: text.flatten()[3:9].view(1, 6),  # over the end of a sample
        lambda text: text[:, ::2],
        lambda text: text.flip(1),
        lambda text: text.T[:2],
        lambda text: text[:, :4] * 0 + 1,
        lambda text: text[:, :4].clamp(max=12),  # tokens change, places do not
        lambda text: text[:0],
        lambda text: text[0],
    ],
)
def test_other_rows_are_refused(cut: Callable[[Tensor], Tensor]) -> None:
    batch = {"text": torch.arange(10, 20).view(2, 5), "sample_index": torch.tensor([4, 9])}
    with pytest.raises(
        InputError, match=r"stretches of its samples as rows of 'text', found one that makes of \[2, 5\]"
    ):
        cut_with_places(lambda given: {**given, "text": cut(given["text"])}, batch, "text")


class Halves:
    """Documents of samples of LENGTH tokens, of two documents each."""

    def segments(self, sample_index: int, tokens: np.ndarray[Any, Any]) -> list[Segment]:
        return self.segments_of_part(sample_index, 0, tokens)

    def segments_of_part(self, sample_index: int, sample_start: int, tokens: np.ndarray[Any, Any]) -> list[Segment]:
        name, length = f"{sample_index}+{sample_start}", len(tokens)
        return [Segment(start=0, length=length, source="s", document_id=name, document_token_offset=0)]


class WholeOnly:
    """Knows nothing of parts."""

    def segments(self, sample_index: int, tokens: np.ndarray[Any, Any]) -> list[Segment]:
        raise AssertionError((sample_index, tokens))


def fetched() -> dict[str, Any]:
    text = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    stretches = [(0, 0), (0, 5), (1, 0), (1, 5), (0, 11), (1, 11)]
    batch = {"text": text, "sample_index": torch.tensor([40, 7])}
    return dict(cut_with_places(cutting(stretches, 5), batch, "text"))


def test_rows_say_where_they_were_cut_from(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path, shorter_rows=True, documents=Halves()) as hook:
        for batch in hook.wrap([fetched()], tokens="text"):
            assert set(batch) == {"text"}
            model(batch["text"])
        hook.commit(1)
    found = rows(tmp_path)
    assert [row.sample_index for row in found] == [40, 40, 7, 7, 40, 7]
    assert [row.segments[0].document_id for row in found] == ["40+0", "40+5", "7+0", "7+5", "40+11", "7+11"]
    part = next(iter(ReplayDataset(tmp_path)))
    assert part.batch["sample_start"].tolist() == [0, 5, 0, 5, 11, 11]
    assert torch.equal(part.batch["text"], model.seen[0])
    assert verify(tmp_path).findings == ()


def test_a_resolver_of_whole_samples_is_refused(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path, shorter_rows=True, documents=WholeOnly())
    for batch in hook.wrap([fetched()], tokens="text"):
        model(batch["text"])
    hook.commit(1)
    with pytest.raises(ExportStopped, match=r"sample 40: expected documents= that finds those of a part of a sample"):
        hook.close()
