"""What an upgrade changes for a run, as `kiseki upgrade` prints it."""

from rich.table import Table

from indexer.build.upgrade import INDEX_TOKENS_PER_S, LACKS, ShardToRebuild, UpgradeCheck, WayBack
from ui.terminal import console
from ui.terminal.trace import numbered, plural

__all__ = ["print_upgrade"]

DOCUMENT = "docs/upgrading.md"
SHOWN_SHARDS = 8


def print_upgrade(found: UpgradeCheck, run: str) -> None:
    """Formats, what is built again, and the way back."""
    _print_formats(found)
    _print_index(found, run)
    _print_way_back(found)


def _print(line: str) -> None:
    console.output.print(line, markup=False)


def _print_formats(found: UpgradeCheck) -> None:
    _print(f"run {found.run_id}: begun in format {found.run_format}; new attempts will be of format "
           f"{found.next_attempt_format}")  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("attempt", "format"):
        table.add_column(name, justify="right")
    for attempt in found.attempts:
        table.add_row(str(attempt.attempt), str(attempt.format_version))
    console.output.print(table)
    older = tuple(attempt.attempt for attempt in found.attempts if attempt.lacks)
    if not older:
        return
    lacks = sorted({name for attempt in found.attempts for name in attempt.lacks}, key=list(LACKS).index)
    _print(f"{numbered('attempt', older)} can be read as before. It was not recorded, and so they cannot give:")
    for name in lacks:
        _print(f"    {name}: {LACKS[name]}")


def _print_index(found: UpgradeCheck, run: str) -> None:
    if found.generation is None:
        _print("index: no generation is published; there is nothing to build again")
        return
    begin = f"index: generation {found.generation} is published, with {plural(found.num_shards, 'shard')}"
    if not found.to_rebuild:
        _print(f"{begin}, all of today's format {found.shard_format}")
        return
    _print(f"{begin}; {len(found.to_rebuild):,} must be built again, which `kiseki index {run}` does:")
    for shard in found.to_rebuild[:SHOWN_SHARDS]:
        _print(f"    {shard.name}: {_what(shard)}")
    if len(found.to_rebuild) > SHOWN_SHARDS:
        _print(f"    … and {len(found.to_rebuild) - SHOWN_SHARDS:,} more, which --json lists")
    unknown = sum(shard.num_tokens is None for shard in found.to_rebuild)
    more = f", and {plural(unknown, 'shard')} of unknown size" if unknown else ""
    _print(
        f"    {found.num_tokens:,} tokens{more}: about {_duration(found.estimated_s)} with one job. This is an estimate, "
        f"at {INDEX_TOKENS_PER_S:,} tokens a second."
    )
    if any(shard.format is not None for shard in found.to_rebuild):
        _print("    Until then, trace, search and SQL refuse the index.")


def _what(shard: ShardToRebuild) -> str:
    if shard.format is None or shard.num_tokens is None:
        return "its manifest is damaged"
    return f"format {shard.format}, {shard.num_tokens:,} tokens"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60):,} min" if seconds < 5400 else f"{round(seconds / 3600):,} h"


def _print_way_back(found: UpgradeCheck) -> None:
    if found.way_back is WayBack.NOTHING:
        _print("way back: kiseki 0.1.0 cannot read this run, which was begun in format 3")
        return
    new = tuple(attempt.attempt for attempt in found.attempts if attempt.format_version > 2)
    if new:
        _print(f"way back: kiseki 0.1.0 can read this run only without {numbered('attempt', new)} ({DOCUMENT})")
        return
    _print(
        "way back: kiseki 0.1.0 can still read this run. It cannot once an attempt of format 3 is there: copy the export "
        f"before you train on ({DOCUMENT})"
    )
