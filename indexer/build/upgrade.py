"""What an upgrade of kiseki changes for a run: the formats of its attempts, and the shards that must be built again.

1. The export is never rewritten. Each attempt keeps the format in which it was written. New attempts get today's.
2. A shard of another shard format is built again by `kiseki index`, from the export. Until then the index is refused.
3. Nothing is written here. Of a shard only its manifest is read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from indexer.durable import sha256_of
from indexer.storage.generations import published
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import SHARD_FORMAT
from train_hooks.export_format.errors import RunError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import FORMAT_VERSION, RunInfo

__all__ = [
    "INDEX_TOKENS_PER_S",
    "LACKS",
    "AttemptFormat",
    "ShardToRebuild",
    "UpgradeCheck",
    "WayBack",
    "check_upgrade",
]

INDEX_TOKENS_PER_S = 1_000_000
"""Tokens that one job of `kiseki index` takes in a second. Measured on 3.6 million tokens of the example corpus (English
and Japanese), one job, two shared cores: 0.96 and 1.10 million in two builds."""

LACKS: Mapping[str, str] = {
    "evidence": "how each row and tensor is known, and how it was tied to a forward call",
    "late losses": "losses of segments, and losses of rows that came after their step was written",
    "segment proofs": "a proof of one segment that says nothing of the other segments of its row",
    "record commitments": "a hash over status, losses and step records that still holds once files are compacted",
    "summaries": "counts in the seals, so that status and index need not read every acknowledgement record",
    "barrier records": "a file that says up to which step all rows were durable on every rank",
}
"""What attempts of formats 1 and 2 cannot give. No upgrade can add it: it was not recorded."""


class WayBack(StrEnum):
    """What kiseki 0.1.0 reads of the export as it is now."""

    ALL = "all"
    WITHOUT_NEW_ATTEMPTS = "without new attempts"
    NOTHING = "nothing"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptFormat:
    """The format of one attempt. lacks: keys of `LACKS`."""

    attempt: int
    format_version: int
    lacks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardToRebuild:
    """A published shard that `kiseki index` builds again. format, num_tokens: None where its manifest is damaged."""

    name: str
    format: str | None
    num_tokens: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UpgradeCheck:
    """What an upgrade changes for a run.

    generation: number of the published one, None where there is no index. num_shards: all that it has. num_tokens: of the
    shards to rebuild, as far as their manifests say. estimated_s: seconds that one job of `kiseki index` will take for
    them, from `INDEX_TOKENS_PER_S`; an estimate.
    """

    run_id: str
    run_format: int
    next_attempt_format: int
    attempts: tuple[AttemptFormat, ...]
    generation: int | None
    num_shards: int
    shard_format: str
    to_rebuild: tuple[ShardToRebuild, ...]
    num_tokens: int
    estimated_s: float
    way_back: WayBack

    @property
    def exit_code(self) -> int:
        """0 everything can be read as it is, 3 shards of the index must be built again."""
        return 3 if self.to_rebuild else 0


def check_upgrade(run_dir: Path | str) -> UpgradeCheck:
    """Look at a run, and change nothing.

    Raises RunError for a directory that is no run, or a run or attempt of a later format than ours, or an index of
    another run; DamageError where an attempt's file or the published generation does not match its hash.
    """
    run = RunReader(run_dir)
    attempts = tuple(
        AttemptFormat(
            attempt=reader.info.attempt,
            format_version=reader.info.format_version,
            lacks=tuple(LACKS) if reader.info.format_version < FORMAT_VERSION else (),
        )
        for reader in run.attempts()
    )
    paths = IndexPaths(run.paths.run_dir)
    generation = published(paths)
    if generation is not None and generation.run_id != run.info.run_id:
        raise RunError(
            f"{paths.index} is of run {generation.run_id}, the export of {run.info.run_id}; delete the index"
        )
    shards = [] if generation is None else [_manifest(paths, *shard) for shard in generation.shards.items()]
    to_rebuild = tuple(shard for shard in shards if shard.format != SHARD_FORMAT)
    num_tokens = sum(shard.num_tokens or 0 for shard in to_rebuild)
    return UpgradeCheck(
        run_id=run.info.run_id,
        run_format=run.info.format_version,
        next_attempt_format=FORMAT_VERSION,
        attempts=attempts,
        generation=None if generation is None else generation.number,
        num_shards=len(shards),
        shard_format=SHARD_FORMAT,
        to_rebuild=to_rebuild,
        num_tokens=num_tokens,
        estimated_s=num_tokens / INDEX_TOKENS_PER_S,
        way_back=_way_back(run.info, attempts),
    )


def _manifest(paths: IndexPaths, name: str, sha256: str) -> ShardToRebuild:
    """What a shard's manifest says of itself, in any shard format."""
    try:
        data = (paths.shard_dir(name) / "shard.json").read_bytes()
        if sha256_of(data) != sha256:
            raise ValueError("another SHA-256 than the generation says")
        document = json.loads(data)
        return ShardToRebuild(name=name, format=str(document["format"]), num_tokens=int(document["num_tokens"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ShardToRebuild(name=name, format=None, num_tokens=None)


def _way_back(run: RunInfo, attempts: tuple[AttemptFormat, ...]) -> WayBack:
    if run.format_version > 2:
        return WayBack.NOTHING
    is_new = any(attempt.format_version > 2 for attempt in attempts)
    return WayBack.WITHOUT_NEW_ATTEMPTS if is_new else WayBack.ALL
