"""Bytes a token on disk, before and after compaction, and the speed of writing, compaction and verification.

    python bench/export_size.py --copies 4

Real text: examples/corpus, tokenized by a byte-level BPE of 50,257 ids that is trained on it, packed into sequences with
their documents as segments and labels shifted by one, as a language model is fed. `--copies` writes the data that often in
different order, as epochs would; row groups are larger than an epoch's reuse could help.
"""

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.support.history import Figures, bench_options, recorded
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Segment, StepStatus
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
VOCABULARY = 50_257


def tokenized() -> list[tuple[str, list[int]]]:
    """(document id, tokens) of the corpus."""
    documents = []
    for path in sorted(CORPUS.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents += [(f"{path.stem}#{number}", json.loads(line)["text"]) for number, line in enumerate(lines)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for _, text in documents), trainer)
    return [(name, [*tokenizer.encode(text).ids, 0]) for name, text in documents]


def packed(documents: list[tuple[str, list[int]]], length: int) -> Iterator[tuple[list[int], tuple[Segment, ...]]]:
    """Sequences and their segments."""
    tokens: list[int] = []
    segments: list[Segment] = []
    for name, document in documents:
        offset = 0
        while offset < len(document):
            taken = document[offset : offset + length - len(tokens)]
            segments.append(
                Segment(
                    start=len(tokens),
                    length=len(taken),
                    source="corpus",
                    document_id=name,
                    document_token_offset=offset,
                )
            )
            tokens += taken
            offset += len(taken)
            if len(tokens) == length:
                yield tokens, tuple(segments)
                tokens, segments = [], []


def staged(rows: list[tuple[list[int], tuple[Segment, ...]]]) -> StagedMicrobatch:
    """A micro-batch with labels and positions, as a trainer has them."""
    tokens: npt.NDArray[np.int64] = np.array([row for row, _ in rows])
    labels = np.roll(tokens, -1, axis=1)
    labels[:, -1] = -100
    positions = np.tile(np.arange(tokens.shape[1]), (len(rows), 1))
    return StagedMicrobatch(
        tokens=tokens,
        tensors={"labels": labels, "position_ids": positions},
        segments=[segments for _, segments in rows],
        sample_index=list(range(len(rows))),
        tokens_key="input_ids",
    )


def main() -> None:
    """Prints one line a measure."""
    parser = bench_options(__doc__)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--copies", type=int, default=1)
    options = parser.parse_args()
    with recorded("export_size", options) as figures:
        bench(options, figures)


def bench(options: argparse.Namespace, figures: Figures) -> None:
    """Write, verify and compact; print and keep sizes and rates."""
    documents = tokenized()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        run_dir, files = Path(directory), OsFileSystem()
        spec = RunSpec(sequence_length=options.length, vocab_size=VOCABULARY, config={})
        run = open_or_create_run(files, run_dir, spec)
        info = claim_attempt(files, run_dir, run, num_writers=1, resume=None, config={})
        writer = RankWriter(files, ExportPaths(run_dir).attempt_dir(1), run, info, 0)
        builder = RowBuilder(run, info, 0, RunReader(run_dir).secret())
        steps = []
        for _ in range(options.copies):
            order = [documents[index] for index in rng.permutation(len(documents))]
            rows = list(packed(order, options.length))
            steps += [staged(rows[at : at + options.micro_batch]) for at in range(0, len(rows), options.micro_batch)]
        began = time.perf_counter()
        for at in range(0, len(steps), 8):
            writer.append(
                [
                    builder.frame(
                        CommittedStep(
                            kind=AckKind.STEP, global_step=step, status=StepStatus.APPLIED, microbatches=(item,),
                            records=(), size_bytes=0,
                        )
                    )
                    for step, item in enumerate(steps[at : at + 8], at + 1)
                ]
            )  # fmt: skip
        writer.close()
        written = time.perf_counter() - began
        began = time.perf_counter()
        report = verify(run_dir)
        verified = time.perf_counter() - began
        num_tokens = report.num_tokens
        began = time.perf_counter()
        (done,) = compact(RunReader(run_dir))
        compacted = time.perf_counter() - began
        began = time.perf_counter()
        assert verify(run_dir).findings == report.findings == ()
        verified_again = time.perf_counter() - began
        acks = sum(path.stat().st_size for path in (run_dir / "export").rglob("*") if path.is_file())
    figures.add("written, for a token", done.size_before_bytes / num_tokens, "bytes")
    figures.add("compacted, for a token", done.size_after_bytes / num_tokens, "bytes")
    figures.add("in all, for a token", acks / num_tokens, "bytes")
    for name, seconds in (
        ("write", written), ("verify", verified), ("compact", compacted), ("verify compacted", verified_again),
    ):  # fmt: skip
        figures.add(name, num_tokens / seconds, "tokens/s")
    print(f"{num_tokens} tokens in sequences of {options.length}, vocabulary {VOCABULARY}")
    print(
        f"written:   {done.size_before_bytes / num_tokens:.3f} bytes a token, {num_tokens / written / 1e6:.1f} M tokens/s"
    )
    print(f"verified:  {num_tokens / verified / 1e6:.1f} M tokens/s, {report.size_bytes / verified / 1e6:.0f} MB/s")
    print(
        f"compacted: {done.size_after_bytes / num_tokens:.3f} bytes a token, {num_tokens / compacted / 1e6:.1f} M tokens/s"
    )
    print(f"in all:    {acks / num_tokens:.3f} bytes a token with records, seals and manifests")
    print(f"verified compacted: {num_tokens / verified_again / 1e6:.1f} M tokens/s")


if __name__ == "__main__":
    main()
