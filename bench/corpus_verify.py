"""An export compared with its corpus: tokens a second and memory, beside tokenizing the corpus alone.

    python bench/corpus_verify.py [--copies 4]

Makes a corpus of the example corpus's texts, `--copies` times under other ids, and an export in which each document is packed
once (sequences of 2,048 tokens, separators between), then measures in a process of its own each: reading the claims and
comparing them with the corpus, and, as the peer, reading and tokenizing the same corpus.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.support.history import bench_options, recorded
from indexer.corpora.reader import CorpusReader
from indexer.corpora.source_tokenizer import SourceTokenizer
from indexer.corpora.verify import collect_claims, compare_with_corpus
from train_hooks import Segment
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch

CORPUS = Path(__file__).resolve().parents[1] / "examples" / "corpus"
LENGTH, VOCABULARY, A_STEP = 2048, 8000, 16


def make(directory: Path, copies: int) -> int:
    """Corpus, tokenizer and export below `directory`; returns the tokens exported."""
    documents = list(CorpusReader(CORPUS).documents())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((document.text for document in documents[::8]), trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "corpus").mkdir()
    encodings = tokenizer.encode_batch_fast([document.text for document in documents])
    ids = [np.array([*encoding.ids, 0], np.int64) for encoding in encodings]
    names = []
    for copy in range(copies):
        with gzip.open(directory / "corpus" / f"part_{copy}.jsonl.gz", "wt", 1, encoding="utf-8") as file:
            for number, document in enumerate(documents):
                name = f"{copy}-{number}"
                file.write(json.dumps({"id": name, "text": document.text, "source": document.source}) + "\n")
                names.append((document.source, name, number))
    return export(directory, names, ids)


def export(directory: Path, names: list[tuple[str, str, int]], ids: list[np.ndarray]) -> int:
    """Concat and cut, one writer; returns the tokens exported."""
    system = OsFileSystem()
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=VOCABULARY, tokenizer=directory / "tokenizer.json", config={}, run_id="bench"
    )
    run = open_or_create_run(system, directory / "run", spec)
    attempt = claim_attempt(system, directory / "run", run, num_writers=1, resume=None, config={})
    writer = RankWriter(system, ExportPaths(directory / "run").attempt_dir(1), run, attempt, 0)
    builder = RowBuilder(run, attempt, 0, RunReader(directory / "run").secret(), pause_s=0)
    rows: list[np.ndarray] = []
    segments: list[list[Segment]] = []
    tokens, parts, step = np.zeros(0, np.int64), [], 0
    for place in np.random.default_rng(1).permutation(len(names)).tolist():
        source, document_id, number = names[place]
        offset = 0
        while offset < len(ids[number]):
            piece = ids[number][offset : offset + LENGTH - len(tokens)]
            parts.append(
                Segment(
                    start=len(tokens), length=len(piece), source=source, document_id=document_id,
                    document_token_offset=offset,
                )
            )  # fmt: skip
            tokens, offset = np.concatenate([tokens, piece]), offset + len(piece)
            if len(tokens) == LENGTH:
                rows.append(tokens)
                segments.append(parts)
                tokens, parts = np.zeros(0, np.int64), []
            if len(rows) == A_STEP:
                step += 1
                microbatch = StagedMicrobatch(tokens=np.stack(rows), segments=segments)
                frame = CommittedStep(
                    kind=AckKind.STEP, global_step=step, status=StepStatus.APPLIED, microbatches=(microbatch,), records=(),
                    size_bytes=0,
                )  # fmt: skip
                writer.append([builder.frame(frame)])
                rows, segments = [], []
    writer.close()
    return step * A_STEP * LENGTH


def only(what: str, directory: Path) -> None:
    """One measurement; prints CPU-seconds and peak MB."""
    if what == "tokenize":
        tokenizer, texts = SourceTokenizer(directory / "tokenizer.json"), []
        for document in CorpusReader(directory / "corpus").documents():
            texts.append(document.text)
            if len(texts) == 100:
                tokenizer.plain(texts)
                texts = []
    else:
        run = RunReader(directory / "run")
        with tempfile.TemporaryDirectory() as temporary:
            report = compare_with_corpus(run, collect_claims(run, Path(temporary)), directory / "corpus")
        assert report.exit_code == 0 and report.num_segments == report.num_equal, report
    print(time.process_time(), peak_mb())


def peak_mb() -> float:
    """The most memory of this process; `getrusage` would count what held the one that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    """Make, measure, print."""
    parser = bench_options(__doc__)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--only", choices=["tokenize", "verify"], help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        only(options.only, options.dir)
        return
    with tempfile.TemporaryDirectory() as temporary, recorded("corpus_verify", options) as figures:
        directory = Path(temporary)
        num_tokens = make(directory, options.copies)
        print(f"{num_tokens:,} tokens exported")
        seconds = {}
        for what in ("tokenize", "verify"):
            command = [sys.executable, __file__, "--only", what, "--dir", str(directory)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            cpu_s, peak_mb = map(float, done.stdout.split()[-2:])
            seconds[what] = cpu_s
            figures.add(what, num_tokens / cpu_s, "tokens/CPU-s")
            figures.add(f"{what}, memory at most", peak_mb, "MB")
            print(f"{what:9} {num_tokens / cpu_s:12,.0f} tokens a CPU-second {peak_mb:8.0f} MB at most")
        figures.add("CPU of comparing over that of tokenizing", seconds["verify"] / seconds["tokenize"])
        print(f"comparing takes {seconds['verify'] / seconds['tokenize']:.2f} times the CPU of tokenizing")


if __name__ == "__main__":
    main()
