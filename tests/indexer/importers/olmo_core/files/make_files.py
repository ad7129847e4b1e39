"""Made these files once, with the real package; not part of the tests.

    pip install ai2-olmo-core==3.0.0
    python make_files.py DIR && cp DIR/*.npy DIR/*.gz DIR/*.json DIR/work/*.npy .

Three token files, config.json of a real configuration, the order that the real data loader saves for two epochs, and
consumed.json: for each row that the real loader gives to each of two ranks (step, rank, slot, index, first and last token).
Of the third token file's documents the boundaries alone are known; paths in config.json were made those of DIR = /data.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from olmo_core.data import DataCollator, NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.data.types import NumpyDatasetDType

LENGTH, BATCH, RANKS = 32, 8, 2


def token_file(directory: Path, number: int, num_tokens: int, rng: np.random.Generator) -> Path:
    """Random documents that end with token 0, and the places of them beside it."""
    tokens = rng.integers(1, 900, num_tokens).astype(np.uint16)
    ends = np.append(np.sort(rng.choice(np.arange(1, num_tokens), num_tokens // 40, replace=False)), num_tokens)
    tokens[ends - 1] = 0
    path = directory / f"part-{number}-00000.npy"
    tokens.tofile(path)
    with gzip.open(path.with_suffix(".csv.gz"), "wt") as file:
        start = 0
        for index, end in enumerate(ends.tolist()):
            names = f",doc-{number}-{index},/data/src-{number}.jsonl.gz,{index + 1}" if number < 2 else ""
            file.write(f"{start},{end}{names}\n")
            start = end
    return path


def main(directory: Path) -> None:
    """Write all of it below `directory`."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(1)
    paths = [token_file(directory, number, size, rng) for number, size in enumerate((1000, 1777, 640))]
    dataset_config = NumpyFSLDatasetConfig(
        paths=list(map(str, paths)),
        sequence_length=LENGTH,
        tokenizer=TokenizerConfig(vocab_size=1000, eos_token_id=0, pad_token_id=1),
        work_dir=str(directory / "work"),
        dtype=NumpyDatasetDType.uint16,
    )
    loader_config = NumpyDataLoaderConfig(global_batch_size=LENGTH * BATCH, seed=34521, num_workers=0)
    document = {"dataset": dataset_config.as_config_dict(), "data_loader": loader_config.as_config_dict()}
    (directory / "config.json").write_text(
        json.dumps(document, indent=1, default=str).replace(str(directory), "/data") + "\n"
    )
    dataset = dataset_config.build()
    consumed = []
    for rank in range(RANKS):
        loader = loader_config.build(dataset, collator=DataCollator(pad_token_id=1), dp_process_group=None)
        loader.dp_world_size, loader.dp_rank = RANKS, rank
        step = 0
        for epoch in (1, 2):
            loader.reshuffle(epoch)
            for batch in loader:
                step += 1
                for slot, (ids, index) in enumerate(
                    zip(batch["input_ids"].tolist(), batch["index"].tolist(), strict=True)
                ):
                    consumed.append([step, rank, slot, index, ids[0], ids[-1]])
            loader.reset()
    (directory / "consumed.json").write_text(json.dumps(consumed) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
