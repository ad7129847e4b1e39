"""A first look at a dump, most lines unparsed: which iterations each rank has, where it went back, what the files are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indexer.corpora.files import HashedFile, Problems, lines_of, parse_line
from indexer.importers.llm_jp.dump import MAX_MISSING, DumpFile, Iterations
from train_hooks.export_format.errors import InputError

__all__ = ["DumpScan", "ScannedFile", "scan_dump"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedFile:
    """A file of a dump. sha256: of the file as it is; num_lines: those that are not blank."""

    name: str
    sha256: str
    num_lines: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpScan:
    """What a dump holds. attempts: (first, last) iteration of each, over all ranks; the first one begins where it begins."""

    files: tuple[ScannedFile, ...]
    attempts: tuple[tuple[int, int], ...]
    sequence_length: int


def scan_dump(ranks: dict[int, list[DumpFile]], advance: Callable[[int], None] | None = None) -> DumpScan:
    """Read all files of `list_dump` once. Raises InputError where ranks went back at different iterations."""
    files: list[ScannedFile] = []
    by_rank = {rank: _attempts_of(of_rank, files, advance) for rank, of_rank in ranks.items()}
    begins = {rank: [first for first, _ in attempts[1:]] for rank, attempts in by_rank.items()}
    for rank, found in begins.items():
        if found != begins[0]:
            raise InputError(
                f"rank 0 of the dump went back to iterations {begins[0] or 'none'}, rank {rank} to {found or 'none'}: "
                "are all files of one training, and are they whole?"
            )
    whole = [attempts for attempts in by_rank.values() if attempts]
    if not whole:
        raise InputError("expected lines with an iteration in the dump, found none")
    starts = [attempts[0][0] for attempts in whole]
    if max(starts) > min(starts) + MAX_MISSING:
        raise InputError(
            f"expected ranks that begin at most {MAX_MISSING:,} iterations after one another, found {min(starts)} and "
            f"{max(starts)}: are all files of one training?"
        )
    attempts = tuple(
        (min(first for first, _ in of_attempt), max(last for _, last in of_attempt))
        for of_attempt in zip(*whole, strict=True)
    )
    return DumpScan(files=tuple(files), attempts=attempts, sequence_length=_sequence_length(ranks))


def _attempts_of(
    files: Sequence[DumpFile], found: list[ScannedFile], advance: Callable[[int], None] | None
) -> list[tuple[int, int]]:
    attempts: list[tuple[int, int]] = []
    iterations = Iterations()
    for file in files:
        num_lines = 0
        with HashedFile(file.path, advance) as stream:
            for number, line in lines_of(stream, file.name, Problems()):
                num_lines += 1
                iteration = iterations.of(line, f"{file.name} line {number}")
                if iteration is None:
                    continue
                if not attempts or iteration < attempts[-1][1]:
                    attempts.append((iteration, iteration))
                elif iteration > attempts[-1][1]:
                    attempts[-1] = (attempts[-1][0], iteration)
            found.append(ScannedFile(name=file.name, sha256=stream.sha256(), num_lines=num_lines))
    return attempts


def _sequence_length(ranks: dict[int, list[DumpFile]]) -> int:
    """That of the first line that can be read."""
    for files in ranks.values():
        for file in files:
            with HashedFile(file.path) as stream:
                for _, line in lines_of(stream, file.name, Problems()):
                    try:
                        token_ids = parse_line(line).get("token_ids")
                    except ValueError:
                        continue
                    if isinstance(token_ids, list) and token_ids:
                        return len(token_ids)
    raise InputError("expected token_ids in the dump, found none in any line")
