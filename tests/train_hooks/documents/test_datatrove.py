"""datatrove's layout, written here by hand as it is published; `tests/adapters/test_datatrove.py` has the real package."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from train_hooks.documents.datatrove import DatatroveDocuments
from train_hooks.documents.datatrove_names import name_documents
from train_hooks.documents.megatron_preprocessing import SourceText
from train_hooks.export_format.documents.sidecar import sidecar_path
from train_hooks.export_format.errors import InputError

SEQ_LEN = 7
EOS = 60_000
TEXTS = [
    SourceText(source=f"s{number % 3}", document_id=f"d{number}", file="f.jsonl", line=number + 1, text=text)
    for number, text in enumerate(
        ["a b c", "", "d " * 40, "e", "f g", "e", "h i j k l m n o p", "q r", "e", "s t u v", "w x y z " * 9]
    )
]


def tokenize(text: str) -> list[int]:
    return [*map(ord, text.split()), EOS] if text else []


def write(directory: Path, name: str, ordinals: list[int], token_size: int) -> list[tuple[int, int, int]]:
    """A .ds of these texts; its tokens one by one: (token, text's ordinal, offset)."""
    directory.mkdir(exist_ok=True)
    spread = [
        (token, ordinal, offset) for ordinal in ordinals for offset, token in enumerate(tokenize(TEXTS[ordinal].text))
    ]
    np.array([token for token, _, _ in spread], f"<u{token_size}").tofile(directory / name)
    ends = np.cumsum([len(tokenize(TEXTS[ordinal].text)) for ordinal in ordinals])
    ends.astype("<u8").tofile(directory / f"{name}.index")
    return spread


class File:
    """What DatatroveFileDataset has."""

    def __init__(self, path: Path, token_size: int, seq_len: int = SEQ_LEN) -> None:
        self.file_path, self.seq_len, self.token_size = str(path), seq_len, token_size

    def __len__(self) -> int:
        return Path(self.file_path).stat().st_size // self.token_size // (self.seq_len + 1)


def folder(directory: Path, names: list[str], token_size: int) -> Any:
    return SimpleNamespace(files=[File(directory / name, token_size) for name in names])


def samples(spread: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    width = SEQ_LEN + 1
    return [spread[first : first + width] for first in range(0, len(spread) - width + 1, width)]


def check(resolver: DatatroveDocuments, index: int, sample: list[tuple[int, int, int]], length: int) -> None:
    """Each token is of a text with this text's words, which is all that can be told of equal texts."""
    found = resolver.segments(index, np.array([token for token, _, _ in sample[:length]]))
    places = [
        (TEXTS[int(segment.document_id[1:])].text, segment.document_token_offset + number)
        for segment in found
        for number in range(segment.length)
    ]
    assert places == [(TEXTS[ordinal].text, offset) for _, ordinal, offset in sample[:length]]
    assert all(segment.source == f"s{int(segment.document_id[1:]) % 3}" for segment in found)
    assert [segment.start for segment in found] == np.cumsum([0, *(segment.length for segment in found)])[:-1].tolist()


@pytest.mark.parametrize("token_size", [2, 4])
def test_every_token_of_every_sample(tmp_path: Path, token_size: int) -> None:
    shuffled = np.random.default_rng(3).permutation(len(TEXTS)).tolist()
    first = write(tmp_path / "a", "0.ds", shuffled[:4], token_size)
    second = write(tmp_path / "a", "1.ds", shuffled[4:], token_size)
    assert name_documents((tmp_path / "a").glob("*.ds"), TEXTS, tokenize, token_size=token_size) == len(TEXTS)
    dataset = folder(tmp_path / "a", ["1.ds", "0.ds"], token_size)  # as a dataset shuffles its files
    expected = samples(second) + samples(first)
    assert len(expected) > 8
    for index, sample in enumerate(expected):
        for length in (SEQ_LEN, SEQ_LEN + 1):
            check(DatatroveDocuments(dataset), index, sample, length)
        with pytest.raises(InputError, match="give the dataset that the loader reads"):
            DatatroveDocuments(dataset).segments(index, np.full(SEQ_LEN, 1))
    with pytest.raises(InputError, match=f"expected a sample below {len(expected)}"):
        DatatroveDocuments(dataset).segments(len(expected), np.zeros(SEQ_LEN, np.int64))


@pytest.mark.parametrize("offsets", [{}, {0: 0, 1: 2}], ids=["Nanoset", "BlendableDataset"])
def test_blends_of_nanotron(tmp_path: Path, offsets: dict[int, int]) -> None:
    """BlendableDataset leaves out what earlier stages had of a folder."""
    everything = {name: write(tmp_path / name, "0.ds", ordinals, 2) for name, ordinals in
                  (("a", [2, 0, 1, 3, 6]), ("b", [10, 4, 7, 9, 5]))}  # fmt: skip
    for name in everything:
        name_documents([tmp_path / name / "0.ds"], TEXTS, tokenize, token_size=2)
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, 2, 40).astype("uint")
    of_folder = [samples(spread) for spread in everything.values()]
    within = np.array([rng.integers(0, len(of_folder[number]) - offsets.get(number, 0)) for number in chosen.tolist()])
    folders = [folder(tmp_path / name, ["0.ds"], 2) for name in everything]
    nanoset = {"datatrove_datasets": folders}
    blend = {"datasets": folders, "offsets_in_samples": offsets}
    dataset = SimpleNamespace(dataset_index=chosen, dataset_sample_index=within, **(blend if offsets else nanoset))
    resolver = DatatroveDocuments(dataset)
    for index, (number, sample) in enumerate(zip(chosen.tolist(), within.tolist(), strict=True)):
        check(resolver, index, of_folder[number][sample + offsets.get(number, 0)], SEQ_LEN + 1)


def test_equal_texts_are_taken_once_each(tmp_path: Path) -> None:
    write(tmp_path / "a", "0.ds", [3, 5, 8], 2)
    name_documents([tmp_path / "a" / "0.ds"], TEXTS, tokenize, token_size=2)
    dataset = File(tmp_path / "a" / "0.ds", 2, seq_len=5)
    found = DatatroveDocuments(dataset).segments(0, np.array([ord("e"), EOS] * 3))
    assert [segment.document_id for segment in found] == ["d3", "d5", "d8"]
    write(tmp_path / "a", "1.ds", [3, 5, 8, 3], 2)
    with pytest.raises(InputError, match="each once, at document 3"):
        name_documents([tmp_path / "a" / "1.ds"], TEXTS, tokenize, token_size=2)
    assert not sidecar_path(tmp_path / "a" / "1.ds").exists() and len(list((tmp_path / "a").iterdir())) == 5


def test_without_names(tmp_path: Path) -> None:
    spread = write(tmp_path / "a", "0.ds", [0, 1, 4, 7], 2)
    dataset = folder(tmp_path / "a", ["0.ds"], 2)
    with pytest.raises(InputError, match=r"expected .*0\.ds\.documents\.arrow"):
        DatatroveDocuments(dataset)
    segments = DatatroveDocuments(dataset, unnamed_ok=True).segments(0, np.array([token for token, _, _ in spread[:8]]))
    assert [(segment.source, segment.document_id, segment.length) for segment in segments] == [
        ("0.ds", "0", 4),
        ("0.ds", "2", 3),
        ("0.ds", "3", 1),
    ]


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a", "0.ds", [0, 1, 4], 2)
    path = tmp_path / "a" / "0.ds"
    for token_size, message in (
        (4, r"whole numbers of 4 bytes, found 14|expected ends that rise"),
        (3, "2 or 4 bytes"),
    ):
        with pytest.raises(InputError, match=message):
            DatatroveDocuments(folder(tmp_path / "a", ["0.ds"], token_size), unnamed_ok=True)
    Path(f"{path}.index").unlink()
    with pytest.raises(InputError, match=r"save_index=True"):
        name_documents([path], TEXTS, tokenize, token_size=2)
    with pytest.raises(
        InputError, match="expected a dataset of datatrove's, or nanotron's blend of such, found list without seq_len"
    ):
        DatatroveDocuments([1])
    with pytest.raises(InputError, match="give the token_size"):
        name_documents([], TEXTS, lambda _: [70_000], token_size=2)
