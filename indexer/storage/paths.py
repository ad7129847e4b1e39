"""The names of every file below RUN/index, and of tombstones and imported metrics beside it; no other module knows them.

index/CURRENT                        number and SHA-256 of the published generation; replaced by one rename
index/generations/000003/generation.json
index/generations/000003/catalog.duckdb
index/catalog.duckdb                 link to the published generation's catalog
index/shards/<name>/…                immutable; `.building` until whole
index/parts/<name>/…                 the same for parts of the catalog
index/lock                           held by the one process that writes
imported_metrics/<digits>.parquet    metrics of other files (imported_metrics.py); not disposable either
tombstones.json                      what no answer shows; beside the index, since it is not disposable
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IndexPaths"]

_GENERATION = re.compile(r"\d{6,}")


@dataclass(frozen=True, slots=True)
class IndexPaths:
    """Paths below one run directory's index."""

    run_dir: Path

    @property
    def index(self) -> Path:
        return self.run_dir / "index"

    @property
    def tombstones(self) -> Path:
        return self.run_dir / "tombstones.json"

    @property
    def imported_metrics(self) -> Path:
        return self.run_dir / "imported_metrics"

    @property
    def current(self) -> Path:
        return self.index / "CURRENT"

    @property
    def lock(self) -> Path:
        return self.index / "lock"

    @property
    def catalog_link(self) -> Path:
        return self.index / "catalog.duckdb"

    @property
    def generations(self) -> Path:
        return self.index / "generations"

    @property
    def shards(self) -> Path:
        return self.index / "shards"

    @property
    def parts(self) -> Path:
        return self.index / "parts"

    def generation_dir(self, generation: int) -> Path:
        return self.generations / f"{generation:06d}"

    def generation_json(self, generation: int) -> Path:
        return self.generation_dir(generation) / "generation.json"

    def catalog(self, generation: int) -> Path:
        return self.generation_dir(generation) / "catalog.duckdb"

    def shard_dir(self, name: str) -> Path:
        return self.shards / name

    def part_dir(self, name: str) -> Path:
        return self.parts / name

    @staticmethod
    def generation_number(name: str) -> int | None:
        """Number of a generation's directory, or None where the name is not one."""
        return int(name) if _GENERATION.fullmatch(name) else None
