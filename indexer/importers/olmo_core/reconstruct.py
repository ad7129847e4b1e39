"""An OLMo-core training's export, recomputed: what its saved order and configuration say that it must have consumed.

Marked as recomputed. Nobody observed it: steps that were skipped, rolled back or run twice are not in it, nor a change of the
batch size, nor of the number of ranks; it is one attempt from step 1 on.

- `global_indices_dataset_size{N}_epoch{E}_seed{S}_v1.npy` (u32, no header) lists the sequences of an epoch. Step s of an epoch
  takes the s-th group of `batch` indices; data-parallel rank r of R the r-th, r+R-th … of them. The rest is not used.
- Index i is the i-th sequence of all token files, in the order of the configuration, each cut into whole sequences.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.durable import sha256_of_file
from indexer.importers.olmo_core.config import OlmoData, read_config
from indexer.importers.recomputed import Recomputed, RecomputedRow, write_recomputed
from train_hooks.export_format.boundaries import segments_by_eos
from train_hooks.export_format.documents.dolma_files import (
    TokenFileDocuments,
    names_path,
    require_below,
    token_file_documents,
)
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.origin import Origin, OriginKind
from train_hooks.export_format.records import Segment
from train_hooks.export_format.writing.attempts import RunSpec

__all__ = ["reconstruct_olmo_core"]

_NAME = re.compile(r"global_indices_dataset_size(\d+)(?:_epoch(\d+))?(?:_seed(\d+))?_v1\.npy")
WHAT = "OLMo-core's global_indices and configuration"


def reconstruct_olmo_core(
    config: Path,
    run_dir: Path,
    indices: Sequence[Path],
    *,
    num_ranks: int = 1,
    last_step: int | None = None,
    tokenizer: Path | None = None,
    data_dir: Path | None = None,
    corpus: str | None = None,
    run_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recomputed:
    """Write the export of a past training into a run directory that holds none.

    indices: one file an epoch, whose names say which. last_step: where the training ended, else that of the last epoch.
    corpus: where the texts were when they were tokenized, as in `src` of the `.csv.gz`; needed where documents have names.
    Raises InputError for files that do not fit one another, RunError where `run_dir` holds an export.
    """
    data = read_config(config, data_dir)
    if num_ranks < 1 or data.batch % num_ranks:
        raise InputError(
            f"--ranks: expected a divisor of {data.batch}, the sequences of a global batch, found {num_ranks}"
        )
    order = _order(indices, data)
    num_steps = len(order) if last_step is None else last_step
    if not 1 <= num_steps <= len(order):
        raise InputError(f"--last-step: expected 1 to {len(order)}, the steps of the epochs given, found {num_steps}")
    files = [{"name": path.name, "sha256": sha256_of_file(path)} for path in (config, *indices)]
    details = {"files": files, "token_files": [[path.name, path.stat().st_size] for path in data.paths]}
    spec = RunSpec(
        sequence_length=data.sequence_length,
        vocab_size=data.vocab_size,
        run_id=run_id,
        tokenizer=tokenizer,
        config=Origin(kind=OriginKind.RECOMPUTED, what=WHAT, details=details).to_config(),
    )
    rows = _Sequences(data, order, num_ranks, corpus or "").rows
    return write_recomputed(run_dir, spec, rows, num_ranks=num_ranks, num_steps=num_steps, progress=progress)


def _order(indices: Sequence[Path], data: OlmoData) -> npt.NDArray[np.uint32]:
    """The indices of each step, u32 [num_steps, batch]. Raises InputError for an order of other data."""
    num_instances = sum(data.num_instances())
    epochs = []
    for path in indices:
        match = _NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            raise InputError(f"{path}: expected a file global_indices_dataset_size…_epoch…_seed…_v1.npy of OLMo-core")
        found = np.memmap(path, np.uint32, mode="r") if path.stat().st_size else np.zeros(0, np.uint32)
        if int(match[1]) != num_instances or len(found) != num_instances:
            raise InputError(
                f"{path}: it orders {match[1]} sequences and holds {len(found)}, the token files have {num_instances}: is it "
                "of other data, or of another sequence length?"
            )
        if int(found.max(initial=0)) >= num_instances:
            raise InputError(f"{path}: expected indices below {num_instances}, found {int(found.max())}")
        used = len(found) - len(found) % data.batch
        epochs.append((int(match[2] or 0), match[3], np.asarray(found[:used]).reshape(-1, data.batch)))
    epochs.sort(key=lambda item: item[0])
    numbers = [number for number, _, _ in epochs]
    if (
        not epochs
        or numbers != list(range(numbers[0], numbers[0] + len(numbers)))
        or len({s for _, s, _ in epochs}) > 1
    ):
        raise InputError(
            f"--indices: expected one file an epoch, one behind the other and of one seed, found epochs {numbers}"
        )
    return np.concatenate([steps for _, _, steps in epochs])


class _Sequences:
    def __init__(self, data: OlmoData, order: npt.NDArray[np.uint32], num_ranks: int, corpus: str) -> None:
        self._data, self._order, self._num_ranks, self._corpus = data, order, num_ranks, corpus
        self._begins = np.cumsum([0, *data.num_instances()])
        self._tokens = [
            np.memmap(path, data.dtype, mode="r") if path.stat().st_size else np.zeros(0, data.dtype)
            for path in data.paths
        ]
        self._documents: dict[int, TokenFileDocuments] = {}
        self._named = {number for number, path in enumerate(data.paths) if names_path(path).exists()}
        for number in self._named:
            require_below(data.paths[number], corpus)

    def rows(self, step: int, rank: int) -> Iterator[RecomputedRow]:
        """The sequences of a step on a rank."""
        length = self._data.sequence_length
        for slot, index in enumerate(self._order[step - 1][rank :: self._num_ranks].tolist()):
            file = int(np.searchsorted(self._begins, index, side="right")) - 1
            first = (index - int(self._begins[file])) * length
            tokens = np.array(self._tokens[file][first : first + length])
            yield RecomputedRow(
                where=f"{self._data.paths[file]}, token {first}",
                microbatch=0,
                slot=slot,
                sample_index=(step - 1) * self._data.batch + slot * self._num_ranks + rank,
                tokens=tokens,
                segments=self._segments(file, first, tokens),
            )

    def _segments(self, file: int, first: int, tokens: npt.NDArray[np.unsignedinteger]) -> tuple[Segment, ...]:
        if file not in self._named:
            return () if self._data.eos is None else segments_by_eos(tokens, self._data.eos)
        if file not in self._documents:
            whole = len(self._tokens[file])
            self._documents[file] = token_file_documents(self._data.paths[file], whole, self._corpus)
        return self._documents[file].segments(first, len(tokens))
