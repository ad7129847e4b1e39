"""Made these files once, with the real package; not part of the tests.

    pip install megatron-core==0.16.1 torch
    python make_files.py DIR && cp DIR/*.bin DIR/*.idx DIR/*.npy DIR/cache/* .

Two tokenized files, one of them with documents of several sequences and one without tokens; the caches that the real builder
writes for a blend of both, 96 samples over more than one epoch; and samples.npy: for each sample what the real dataset gives,
tokens and then labels, i64 [96, 2, 32]. Paths in the descriptions were made those of DIR = /data, hashes in names stay.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer

VOCABULARY, EOD, LENGTH, SAMPLES = 600, 599, 32, 96


def token_file(prefix: Path, num_documents: int, dtype: type, rng: np.random.Generator) -> None:
    """Random documents that end with EOD; each fifth one is of three sequences, the seventh one has no token."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for number in range(num_documents):
        tokens = [] if number == 7 else [*rng.integers(0, EOD, int(rng.integers(5, 90))).tolist(), EOD]
        third = len(tokens) // 3
        lengths = [third, third, len(tokens) - 2 * third] if number % 5 == 0 else [len(tokens)]
        builder.add_document(torch.tensor(tokens), lengths if tokens else [])
    builder.finalize(f"{prefix}.idx")


def main(directory: Path) -> None:
    """Write all of it below `directory`."""
    directory.mkdir(parents=True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    rng = np.random.default_rng(4)
    prefixes = [directory / "first_text_document", directory / "second_text_document"]
    token_file(prefixes[0], 25, np.uint16, rng)
    token_file(prefixes[1], 40, np.int32, rng)
    config = GPTDatasetConfig(
        random_seed=7, sequence_length=LENGTH, blend=(list(map(str, prefixes)), [0.6, 0.4]), split="1,0,0",
        path_to_cache=str(directory / "cache"), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=True,
        create_attention_mask=False, mid_level_dataset_surplus=0.05,
        tokenizer=MegatronTokenizer.from_pretrained(metadata_path={"library": "null"}, vocab_size=EOD),
    )  # fmt: skip
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [SAMPLES, 0, 0], lambda: True, config).build()[0]
    samples = [[dataset[index][name].tolist() for name in ("tokens", "labels")] for index in range(SAMPLES)]
    np.save(directory / "samples.npy", np.array(samples))
    for path in (directory / "cache").glob("*description.txt"):
        path.write_text(path.read_text().replace(str(directory), "/data"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
