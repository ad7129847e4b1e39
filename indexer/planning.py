"""Which shards a generation should have: pure functions over step ranges.

New steps are cut into ranges of at most `max_rows` rows. While a run is followed the new ranges are small, so FANOUT
neighbours of one tier (tier t holds shards of about max_rows / FANOUT^t rows) are replaced by one shard over all their
steps, and neighbours of the highest tier as soon as they fill a shard. A run of any length so has at most FANOUT - 1 shards
a tier and attempt, beside the full ones, and each row is built again at most once a tier and once to fill a shard.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from indexer.ingest import StepRange
from train_hooks.export_format.chain import WriterLog

__all__ = ["FANOUT", "committed_ranges", "merged"]

FANOUT = 8


def committed_ranges(
    attempt: int, committed: Sequence[int], writers: dict[int, WriterLog], after_step: int, max_rows: int, jobs: int = 1
) -> Iterator[StepRange]:
    """Committed steps after `after_step`, cut into ranges of about `max_rows` rows, at least one step each.

    Several jobs get ranges of one size, as many for each, if those are of the highest tier. Steps without rows go with those
    that follow; at the very end they wait for them.
    """
    rows_of: dict[int, int] = {}
    for writer in writers.values():
        for _, ack in writer.steps():
            rows_of[ack.global_step] = rows_of.get(ack.global_step, 0) + ack.num_rows
    max_rows = _even([rows_of[step] for step in committed if step > after_step], max_rows, jobs)
    first, rows, last = None, 0, after_step
    for step in committed:
        if step <= after_step:
            continue
        if first is not None and rows and (rows + rows_of[step] > max_rows or step != last + 1):
            yield StepRange(attempt=attempt, first_step=first, last_step=last, num_rows=rows)
            first, rows = None, 0
        first = step if first is None else first
        rows, last = rows + rows_of[step], step
    if first is not None and rows:
        yield StepRange(attempt=attempt, first_step=first, last_step=last, num_rows=rows)


def _even(rows_of_steps: Sequence[int], max_rows: int, jobs: int) -> int:
    """At most `max_rows`: rows of ranges of which each job gets as many; `max_rows` where those would be of a lower tier."""
    total = sum(rows_of_steps)
    if jobs == 1 or total == 0:
        return max_rows
    num_ranges = jobs * math.ceil(total / (jobs * max_rows))
    even = math.ceil(total / num_ranges) + max(rows_of_steps) - 1  # a range ends before the step that it cannot hold
    return min(max_rows, even) if _tier(even, max_rows) == 0 else max_rows


def merged(ranges: Sequence[StepRange], max_rows: int) -> list[StepRange]:
    """The same steps in fewer ranges: neighbours of one attempt and tier are joined, FANOUT at a time."""
    result: list[StepRange] = []
    for _, group in itertools.groupby(sorted(ranges), key=lambda steps: steps.attempt):
        of_attempt = list(group)
        while (joined := _join_once(of_attempt, max_rows)) is not None:
            of_attempt = joined
        result += of_attempt
    return result


def _tier(num_rows: int, max_rows: int) -> int:
    """0 for a full shard, t for one of about max_rows / FANOUT^t rows."""
    tier = 0
    while num_rows * FANOUT <= max_rows:
        num_rows *= FANOUT
        tier += 1
    return tier


def _join_once(ranges: list[StepRange], max_rows: int) -> list[StepRange] | None:
    """Join the first FANOUT neighbours of one tier, or as many of the highest tier as fill a shard; None: nothing to do."""
    tiers = [_tier(steps.num_rows, max_rows) for steps in ranges]
    for index in range(len(ranges) - 1):
        end, total = index, 0
        while end < len(ranges) and tiers[end] == tiers[index] and total + ranges[end].num_rows <= max_rows:
            total += ranges[end].num_rows
            end += 1
            if end - index == FANOUT:
                break
        filled = tiers[index] == 0 and (total == max_rows or (end < len(ranges) and tiers[end] == 0))
        if end - index == FANOUT or (filled and end - index >= 2):
            joined = StepRange(
                attempt=ranges[index].attempt,
                first_step=ranges[index].first_step,
                last_step=ranges[end - 1].last_step,
                num_rows=total,
            )
            return [*ranges[:index], joined, *ranges[end:]]
    return None
