"""Generations: published lists of shards. One rename publishes; a reader keeps the one it opened.

A generation is whole before CURRENT names it: its shards, its catalog and `generation.json` are synced first. Killed
anywhere, the old generation stands and its files are all there.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from indexer.durable import replace_file, replace_link, sha256_of, sha256_of_file
from indexer.storage.paths import IndexPaths
from train_hooks.export_format.errors import DamageError, IncompleteError, RunError

__all__ = ["Generation", "locked", "publish", "published", "remove_retired"]

GENERATION_FORMAT = "kiseki-generation-v1"
KEEP_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One published list of shards, and the newest step of each attempt that they cover.

    shards, parts (of the catalog): name → SHA-256 of its manifest, which holds those of its files. directory: where the
    index was when it was published, which the catalog names. num_notes: notes of all attempts, which hold what came after
    its step was written.
    """

    number: int
    run_id: str
    created_unix_s: float
    shards: Mapping[str, str]
    covered: Mapping[int, int]
    canonical_attempt: int | None
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    directory: str = ""
    num_notes: int = 0


def published(paths: IndexPaths) -> Generation | None:
    """The generation that CURRENT names, or None where nothing was published yet. Raises DamageError, RunError."""
    try:
        name, _, expected = paths.current.read_text(encoding="ascii", errors="replace").strip().partition(" ")
    except FileNotFoundError:
        return None
    number = paths.generation_number(name)
    path = paths.generation_json(number) if number is not None else paths.current
    again = f"delete {paths.index} and run `kiseki index`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamageError(f"{path} does not read ({error}); {again}") from error
    if sha256_of(data) != expected:
        raise DamageError(f"{path} does not match the SHA-256 in {paths.current}; {again}")
    document = json.loads(data)
    if document.pop("format", None) != GENERATION_FORMAT:
        raise RunError(f"{path}: expected format {GENERATION_FORMAT}; a newer kiseki may have written it")
    covered = {int(attempt): int(step) for attempt, step in document.pop("covered").items()}
    return Generation(**{**document, "covered": covered})


def write_generation(paths: IndexPaths, generation: Generation) -> None:
    """Write `generation.json`, synced; nobody reads it before `publish`."""
    document = {"format": GENERATION_FORMAT, **dataclasses.asdict(generation)}
    path = paths.generation_json(generation.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(document, indent=1) + "\n").encode())


def publish(paths: IndexPaths, generation: Generation) -> None:
    """Make `generation` the current one."""
    digest = sha256_of_file(paths.generation_json(generation.number))
    replace_file(paths.current, f"{generation.number:06d} {digest}\n".encode("ascii"))
    replace_link(paths.catalog_link, paths.catalog(generation.number).relative_to(paths.index))


def new_number(paths: IndexPaths) -> int:
    """A generation number that no directory has."""
    if not paths.generations.exists():
        return 1
    numbers = [paths.generation_number(entry.name) for entry in paths.generations.iterdir()]
    return max((number for number in numbers if number is not None), default=0) + 1


def remove_retired(paths: IndexPaths, keep_s: float = KEEP_S) -> None:
    """Remove generations that have had a successor for `keep_s`, and shards and parts that no generation left names.

    A reader keeps the generation that it opened; it has this long to finish.
    """
    kept = []
    numbers = sorted(n for entry in paths.generations.iterdir() if (n := paths.generation_number(entry.name)))
    for number, successor in itertools.zip_longest(numbers, numbers[1:]):
        path = paths.generation_json(successor) if successor is not None else None
        if path is not None and path.exists() and time.time() - path.stat().st_mtime > keep_s:
            shutil.rmtree(paths.generation_dir(number))
        else:
            kept.append(number)
    named: dict[str, set[str]] = {"shards": set(), "parts": set()}
    for number in kept:
        with contextlib.suppress(FileNotFoundError):  # it died before it said what it names
            document = json.loads(paths.generation_json(number).read_bytes())
            for kind, names in named.items():
                names.update(document.get(kind, ()))
    for kind, directory in (("shards", paths.shards), ("parts", paths.parts)):
        for entry in directory.iterdir() if directory.exists() else ():
            if entry.name not in named[kind]:
                shutil.rmtree(entry)


@contextlib.contextmanager
def locked(paths: IndexPaths) -> Iterator[None]:
    """Hold the index for writing. Raises IncompleteError where another process does."""
    paths.index.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise IncompleteError(f"another process is indexing {paths.run_dir}; wait for it, or stop it") from error
        yield


def new_generation(
    paths: IndexPaths,
    run_id: str,
    shards: Mapping[str, str],
    covered: Mapping[int, int],
    canonical_attempt: int | None,
    parts: Mapping[str, str],
    num_notes: int = 0,
) -> Generation:
    """A generation that is not yet published."""
    return Generation(
        number=new_number(paths),
        run_id=run_id,
        created_unix_s=time.time(),
        shards=dict(shards),
        covered=dict(covered),
        canonical_attempt=canonical_attempt,
        parts=dict(parts),
        directory=str(paths.index.resolve()),
        num_notes=num_notes,
    )
