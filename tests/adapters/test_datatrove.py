"""datatrove, the real package: its tokenized files, shuffled and merged, and its datasets; documents named afterwards."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from tests.adapters.data.data import collate
from tests.adapters.data.models import Small
from tests.adapters.data.texts import SOURCES, VOCAB_OF_BYTES, bytes_tokenizer, check_documents, texts
from train_hooks import ExportHook
from train_hooks.documents.datatrove import DatatroveDocuments
from train_hooks.documents.datatrove_names import name_documents
from train_hooks.documents.in_batches import CarryingDocuments, Indexed
from train_hooks.export_format.documents.sidecar import Sidecar
from train_hooks.export_format.errors import InputError
from train_hooks.replay import ReplayDataset

if find_spec("datatrove") is None:
    pytest.skip("make test-adapters has datatrove", allow_module_level=True)

from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger
from datatrove.utils.dataset import DatatroveFileDataset, DatatroveFolderDataset

pytestmark = pytest.mark.filterwarnings("ignore")
SEQ_LEN = 48
TEXTS = [text for source in SOURCES for text in texts(source)]  # empty ones among them


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer") / "bytes"
    bytes_tokenizer(directory)
    return directory / "tokenizer.json"


def tokenized(directory: Path, tokenizer: Path, **options: Any) -> Path:
    """By three tasks, as a pipeline with three tasks runs it, with a seed that is not kept."""
    for rank in range(3):
        step = DocumentTokenizer(str(directory), str(tokenizer), eos_token="</s>", **options)
        step.run((Document(text=text.text, id=text.document_id) for text in TEXTS[rank::3]), rank=rank, world_size=3)
    return directory


def ids_of(tokenizer: Path, text: str) -> list[int]:
    """As DocumentTokenizer puts it: the end stands behind empty texts too."""
    return [*Tokenizer.from_file(str(tokenizer)).encode(text).ids, 1]


def check(dataset: Any, tokenizer: Path) -> set[tuple[str, str]]:
    """Every token of every sample stands in the text of the document named, at the offset named."""
    ids = {(text.source, text.document_id): ids_of(tokenizer, text.text) for text in TEXTS}
    resolver, named = DatatroveDocuments(dataset), set()
    for index in range(len(dataset)):
        sample = dataset[index]["input_ids"].numpy()
        assert len(sample) == SEQ_LEN + 1
        for tokens in (sample[:-1], sample):
            segments = resolver.segments(index, tokens)
            assert sum(segment.length for segment in segments) == len(tokens)
            for segment in segments:
                name = (segment.source, segment.document_id)
                source = ids[name][segment.document_token_offset :][: segment.length]
                assert source == tokens[segment.start : segment.start + segment.length].tolist()
                named.add(name)
    return named


def test_export_of_what_a_loader_over_it_gives(tmp_path: Path, tokenizer: Path) -> None:
    """Workers, shuffling, a model that is trained; the documents are looked up by the export's writer thread."""
    folder = tokenized(tmp_path / "tokens", tokenizer)
    name_documents(folder.glob("*.ds"), TEXTS, lambda text: ids_of(tokenizer, text), token_size=2)
    dataset = DatatroveFolderDataset(str(folder), SEQ_LEN, shuffle=True)
    model = Small(vocabulary=VOCAB_OF_BYTES, length=SEQ_LEN + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = ExportHook.attach(
        model, tmp_path / "run", sequence_length=SEQ_LEN + 1, vocab_size=VOCAB_OF_BYTES, config={},
        documents=DatatroveDocuments(dataset),
    )  # fmt: skip
    indexed: Any = Indexed(dataset)
    loader: Any = DataLoader(
        indexed, 4, shuffle=True, num_workers=2, drop_last=True, collate_fn=CarryingDocuments(collate)
    )
    for step, batch in enumerate(hook.wrap(loader), 1):
        model(batch["input_ids"], labels=batch["input_ids"]).backward()
        optimizer.step()
        hook.commit(step)
    hook.close()
    ids = {(text.source, text.document_id): ids_of(tokenizer, text.text) for text in TEXTS}
    seen = []
    for part in ReplayDataset(tmp_path / "run", dp_rank=0):
        check_documents(part, "input_ids", ids)
        for index, row in zip(part.sample_index, part.batch["input_ids"], strict=True):
            assert index is not None and torch.equal(row, dataset[index]["input_ids"])
            seen.append(index)
    assert len(seen) == len(set(seen)) == len(dataset) // 4 * 4 > 100


@pytest.mark.parametrize("options", [{}, {"shuffle_documents": False}, {"max_tokens_per_file": 2000}])
def test_files_of_the_tokenizer(tmp_path: Path, tokenizer: Path, options: dict[str, Any]) -> None:
    folder = tokenized(tmp_path / "tokens", tokenizer, **options)
    files = list(folder.glob("*.ds"))
    num_files = 3 if "max_tokens_per_file" not in options else len(files)
    assert len(files) == num_files >= 3
    assert name_documents(files, TEXTS, lambda text: ids_of(tokenizer, text), token_size=2) == len(TEXTS)
    for shuffle in (False, True):
        dataset = DatatroveFolderDataset(str(folder), SEQ_LEN, shuffle=shuffle)
        assert len(dataset) > 100
        assert len(check(dataset, tokenizer)) > 0.8 * len(TEXTS)
    assert check(DatatroveFileDataset(str(files[0]), SEQ_LEN), tokenizer)


def test_merged_files(tmp_path: Path, tokenizer: Path) -> None:
    folder = tokenized(tmp_path / "tokens", tokenizer)
    merger = DocumentTokenizerMerger(
        str(folder), str(tmp_path / "merged"), "all", max_tokens_per_file=9000, progress=False
    )
    merger.run()
    files = list((tmp_path / "merged").glob("*.ds"))
    assert len(files) > 1
    assert name_documents(files, TEXTS, lambda text: ids_of(tokenizer, text), token_size=2) == len(TEXTS)
    taken = [Sidecar(file, Path(f"{file}.index")) for file in files]
    counts = [np.fromfile(f"{file}.index", "<u8").size for file in files]
    names = [sidecar.name(number) for sidecar, count in zip(taken, counts, strict=True) for number in range(count)]
    assert sorted(names) == sorted((text.source, text.document_id) for text in TEXTS)
    assert len(check(DatatroveFolderDataset(str(tmp_path / "merged"), SEQ_LEN, shuffle=True), tokenizer)) > 100


def test_positions_are_datatroves(tmp_path: Path, tokenizer: Path) -> None:
    """A token's offset in its document, within a sample, is what datatrove calls its position."""
    folder = tokenized(tmp_path / "tokens", tokenizer)
    resolver = DatatroveDocuments(DatatroveFolderDataset(str(folder), SEQ_LEN), unnamed_ok=True)
    dataset = DatatroveFolderDataset(str(folder), SEQ_LEN, return_positions=True)
    for index in range(len(dataset)):
        sample = dataset[index]
        segments = resolver.segments(index, sample["input_ids"].numpy()[:-1])
        starts = [segment.start for segment in segments]
        assert starts == [place for place, number in enumerate(sample["positions"].tolist()[:-1]) if number == 0]


def test_files_shuffled_in_chunks_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    folder = tokenized(tmp_path / "tokens", tokenizer, shuffle_chunk_size=49)
    with pytest.raises(InputError, match="none that were shuffled in chunks"):
        name_documents(folder.glob("*.ds"), TEXTS, lambda text: ids_of(tokenizer, text), token_size=2)
    assert not list(folder.glob("*.arrow"))


def test_the_vocabulary_of_four_bytes(tmp_path: Path, tokenizer: Path) -> None:
    """Tokens of 4 bytes, which datatrove writes for vocabularies beyond 65,535."""
    large = Tokenizer.from_file(str(tokenizer))
    large.add_tokens([f"<{number}>" for number in range((1 << 16) + 4 - VOCAB_OF_BYTES)])
    large.save(str(tmp_path / "tokenizer.json"))
    folder = tokenized(tmp_path / "tokens", tmp_path / "tokenizer.json")
    name_documents(folder.glob("*.ds"), TEXTS, lambda text: [*large.encode(text).ids, 1], token_size=4)
    assert check(DatatroveFolderDataset(str(folder), SEQ_LEN, token_size=4), tokenizer)
