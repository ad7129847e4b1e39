"""An export written as an LLM-jp dump.

1. One file a rank and fold, lines in the order of training: attempt by attempt, committed steps, also superseded ones. So a
   dump that was imported comes out as it was, where no line of it was bad; the iteration is the step less the `step_offset` of
   the import. JSON is as Python writes it, `ensure_ascii=False`, with the keys in the order of `dump.KEYS`.
2. Exports of our own have one fold, `00`. `dataset_name` is the source of the row's first document, `dataset_idx` the place of
   this name among those met so far by any rank, `doc_ids` the ids of the row's documents, numbers where they are numbers.
   `text` is what the run's tokenizer makes of the tokens, "" where the run has none.
"""

import contextlib
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.importers.llm_jp.dump import dump_name
from indexer.importers.llm_jp.rows import DATASET_IDX, DOC_IDS, FOLD, TEXT, doc_ids_of, tensor_value
from indexer.importers.unfinished import unfinished_directory
from indexer.tokenizer.tokenizer import RunTokenizer
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.origin import origin_of
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row

__all__ = ["WrittenDump", "export_dump"]

LEVEL = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenDump:
    """What was written."""

    num_files: int
    num_rows: int
    num_tokens: int


def export_dump(run: RunReader, directory: Path, *, progress: Callable[[int, int], None] | None = None) -> WrittenDump:
    """Write all rows of a run. Raises InputError where `directory` is not empty; DamageError for a frame that is damaged."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"{directory}: expected an empty directory for the dump, or none yet")
    with unfinished_directory(directory.with_name(f"{directory.name}.inprogress")) as unfinished:
        made = unfinished / "dump"
        made.mkdir()
        done = _Export(run, made).run(progress)
        made.rename(directory)
        return done


class _Export:
    def __init__(self, run: RunReader, directory: Path) -> None:
        self._run, self._directory = run, directory
        self._tokenizer = None if run.info.tokenizer_file is None else RunTokenizer(run)
        offset = origin_of(run.info).details.get("step_offset")
        self._offset = offset if isinstance(offset, int) else 0
        self._datasets: dict[str, int] = {}
        self._num_files = self._num_rows = self._num_tokens = 0

    def run(self, progress: Callable[[int, int], None] | None) -> WrittenDump:
        attempts = [(attempt, attempt.writers()) for attempt in self._run.attempts()]
        committed = {attempt.info.attempt: set(attempt.committed_steps(writers)) for attempt, writers in attempts}
        ranks = sorted({rank for _, writers in attempts for rank in writers})
        total, done = len(ranks) * sum(map(len, committed.values())), 0
        for rank in ranks:
            with contextlib.closing(_RankFiles(self._directory, rank)) as files:
                for attempt, writers in attempts:
                    if rank not in writers:
                        continue
                    for file, ack in writers[rank].steps():
                        if ack.global_step in committed[attempt.info.attempt]:
                            self._write(files, attempt.rows(attempt.frame(file, ack)))
                            done += 1
                            if progress is not None:
                                progress(done, total)
                self._num_files += files.num_files
        return WrittenDump(
            num_files=self._num_files,
            num_rows=self._num_rows,
            num_tokens=self._num_tokens,
        )

    def _write(self, files: "_RankFiles", rows: Sequence[Row]) -> None:
        texts = [""] * len(rows)
        if self._tokenizer is not None:
            texts = self._tokenizer.decode_many([row.tokens for row in rows])
        for row, text in zip(rows, texts, strict=True):
            fold = tensor_value(row, FOLD)
            line = json.dumps(self._record(row, text), ensure_ascii=False)
            files.write("00" if fold is None else str(fold[()]), line + "\n")
        self._num_rows += len(rows)
        self._num_tokens += sum(len(row.tokens) for row in rows)

    def _record(self, row: Row, text: str) -> dict[str, Any]:
        name = row.segments[0].source if row.segments else ""
        index, kept, ids = (tensor_value(row, tensor) for tensor in (DATASET_IDX, TEXT, DOC_IDS))
        return {
            "iteration": row.address.global_step - self._offset,
            "dataset_idx": self._datasets.setdefault(name, len(self._datasets)) if index is None else int(index[()]),
            "dataset_name": name,
            "doc_ids": doc_ids_of(row.segments) if ids is None else json.loads(ids.tobytes()),
            "text": text if kept is None else kept.tobytes().decode("utf-8"),
            "token_ids": row.tokens.tolist(),
        }


class _RankFiles:
    """The files of one rank, a fold after the other."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._directory, self._rank = directory, rank
        self._fold: str | None = None
        self._file: Any = None
        self.num_files = 0

    def close(self) -> None:
        """The last line was written."""
        if self._file is not None:
            self._file.close()

    def write(self, fold: str, line: str) -> None:
        """A line of a fold."""
        if fold != self._fold:
            self.close()
            self._fold, path = fold, self._directory / dump_name(fold, self._rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = gzip.open(path, "wt", LEVEL, encoding="utf-8", newline="\n")  # noqa: SIM115
            self.num_files += 1
        self._file.write(line)
