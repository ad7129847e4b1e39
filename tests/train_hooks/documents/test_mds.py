"""Concatenated MDS samples and their segments, against a stream of tokens written down one by one."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train_hooks.documents.mds import MdsPlaces, SamplePlace, concatenated, segments_of_column
from train_hooks.documents.megatron_preprocessing import SourceText
from train_hooks.export_format.errors import InputError

Place = tuple[str, int] | None  # document and offset of a token; None for what belongs to nobody


def samples_one_by_one(
    lengths: list[int], length: int, bos: list[int], eos: list[int], *, wrap: bool
) -> list[list[tuple[int, Place]]]:
    """As ConcatTokensDataset does it, token by token."""
    found: list[list[tuple[int, Place]]] = []
    buffer: list[tuple[int, Place]] = []
    for number, num_tokens in enumerate(lengths):
        buffer += [(token, None) for token in bos]
        ids = [*range(1000 * number, 1000 * number + num_tokens), *eos]
        buffer += [(token, (f"d{number}", offset)) for offset, token in enumerate(ids)]
        while len(buffer) >= length:
            found.append(buffer[:length])
            buffer = buffer[length:] if wrap else []
    return found


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 12), st.integers(0, 60)), max_size=25), length=st.integers(1, 17),
    bos=st.sampled_from([[], [-1], [-1, -2]]), eos=st.sampled_from([[], [-3], [-3, -4]]), wrap=st.booleans(),
    cut=st.integers(1, 17),
)  # fmt: skip
def test_concatenated(lengths: list[int], length: int, bos: list[int], eos: list[int], wrap: bool, cut: int) -> None:
    texts = (
        SourceText(source="s", document_id=f"d{number}", file="f", line=number + 1, text=f"{number} {num_tokens}")
        for number, num_tokens in enumerate(lengths)
    )

    def tokenize(text: str) -> list[int]:
        number, num_tokens = map(int, text.split())
        return list(range(1000 * number, 1000 * number + num_tokens))

    expected = samples_one_by_one(lengths, length, bos, eos, wrap=wrap)
    found = list(concatenated(texts, tokenize, length=length, bos=bos, eos=eos, wrap=wrap))

    assert [sample["tokens"].tolist() for sample in found] == [[token for token, _ in sample] for sample in expected]
    for sample, one_by_one in zip(found, expected, strict=True):
        column = json.loads(json.dumps(sample["segments"]))
        places: list[Place] = [None] * min(cut, length)
        for segment in segments_of_column(column, min(cut, length)):
            for number in range(segment.length):
                assert places[segment.start + number] is None
                places[segment.start + number] = (segment.document_id, segment.document_token_offset + number)
        assert places == [place for _, place in one_by_one][: min(cut, length)]


def test_places(tmp_path: Path) -> None:
    sizes = {"a": [3, 1], "b": [2, 0, 4]}
    for name, samples in sizes.items():
        shards = [{"samples": size, "raw_data": {"basename": f"s{number}"}} for number, size in enumerate(samples)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    places = MdsPlaces([tmp_path / "a", tmp_path / "b"])
    expected = [
        SamplePlace(stream=stream, shard=f"s{number}", row=row)
        for stream, samples in enumerate(sizes.values())
        for number, size in enumerate(samples)
        for row in range(size)
    ]
    assert [places.place(index) for index in range(len(places))] == expected and len(expected) == 10
    for index in (-1, 10):
        with pytest.raises(InputError, match="expected a sample below 10"):
            places.place(index)
    with pytest.raises(InputError, match=r"expected .*index\.json"):
        MdsPlaces([tmp_path])
