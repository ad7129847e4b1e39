"""From a published corpus through Megatron's tokenized files, with names beside them, to an export compared with it."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from indexer.corpora.reader import CorpusReader
from indexer.corpora.verify import collect_claims, compare_with_corpus
from indexer.importers.megatron.reconstruct import MegatronSchedule, reconstruct_megatron
from tests.indexer.corpora.exported import save_tokenizer
from tests.indexer.corpora.published import CORPORA, texts
from tests.support.export_maker import all_rows
from train_hooks.documents.megatron_preprocessing import SourceText, write_indexed
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader

LENGTH = 48


def write_cache(directory: Path, prefix: Path, lengths: list[int]) -> Path:
    """The caches of a GPTDataset of one epoch, in an order of ours; what samples are is Megatron's rule, in a plain loop."""
    documents = np.random.default_rng(3).permutation(len(lengths)).astype(np.int32)
    starts = [(0, 0)]
    entry = offset = 0
    while True:
        left = LENGTH
        while entry < len(documents) and left >= lengths[documents[entry]] - offset:
            left -= lengths[documents[entry]] - offset
            entry, offset = entry + 1, 0
        if entry == len(documents):
            break
        offset += left
        starts.append((entry, offset))
    description = directory / "0f-GPTDataset-train-description.txt"
    description.write_text(json.dumps({"class": "GPTDataset", "dataset_path": str(prefix), "sequence_length": LENGTH}))
    for name, array in (
        ("document_index", documents),
        ("sample_index", np.array(starts, np.int32)),
        ("shuffle_index", np.random.default_rng(4).permutation(len(starts) - 1).astype(np.uint32)),
    ):
        np.save(directory / f"0f-GPTDataset-train-{name}.npy", array)
    return description


def test_every_segment_is_what_its_document_gives(tmp_path: Path) -> None:
    CORPORA["llm-jp"](tmp_path / "corpus", texts())
    path = save_tokenizer(tmp_path / "tokenizer.json", texts())
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    documents = list(CorpusReader(tmp_path / "corpus").documents())
    sources = [
        SourceText(source=d.source, document_id=d.document_id, file=d.file, line=d.number, text=d.text)
        for d in documents
    ]
    prefix = tmp_path / "llm_jp_text_document"
    write_indexed(prefix, sources, lambda text: tokenizer.encode(text).ids, vocab_size=1500, end_of_document=0)
    lengths = [len(tokenizer.encode(d.text).ids) + 1 for d in documents if d.text]
    description = write_cache(tmp_path, prefix, lengths)
    schedule = MegatronSchedule(global_batch_size=4, num_ranks=2)
    reconstruct_megatron(description, tmp_path / "run", schedule, tokenizer=path)
    names = {(segment.source, segment.document_id) for row in all_rows(tmp_path / "run") for segment in row.segments}
    assert names <= {(d.source, d.document_id) for d in documents} and len(names) > 10
    run = RunReader(tmp_path / "run")
    (tmp_path / "claims").mkdir()
    report = compare_with_corpus(run, collect_claims(run, tmp_path / "claims"), tmp_path / "corpus")
    assert report.exit_code == 0 and report.num_equal == report.num_segments > 100 and report.num_unnamed == 0
    prefix.with_name(prefix.name + ".idx").write_bytes(prefix.with_name(prefix.name + ".idx").read_bytes() + b"\0")
    with pytest.raises(InputError, match="whole"):
        reconstruct_megatron(description, tmp_path / "other", schedule, tokenizer=path)
