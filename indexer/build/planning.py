"""Which shards a generation should have: pure functions over step ranges.

New steps are cut into ranges of at most `max_size` tokens. While a run is followed the new ranges are small, so FANOUT
neighbours of one tier (tier t holds shards of about max_size / FANOUT^t tokens) are replaced by one shard over all their
steps, and neighbours of the highest tier as soon as they fill a shard. A run of any length so has at most FANOUT - 1 shards
a tier and attempt, beside the full ones, and each row is built again at most once a tier and once to fill a shard.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from indexer.storage.step_range import StepRange
from train_hooks.export_format.reading.summaries import AttemptSummary

__all__ = ["FANOUT", "committed_ranges", "merge_ranges"]

FANOUT = 8


def committed_ranges(summary: AttemptSummary, after_step: int, max_size: int, jobs: int = 1) -> Iterator[StepRange]:
    """Committed steps after `after_step`, cut into ranges of about `max_size` tokens, at least one step each.

    Several jobs get ranges of one size, as many for each, if those are of the highest tier. Steps without rows go with
    those that follow; at the very end they wait for them.
    """
    number, committed, size_of = summary.attempt.attempt, summary.committed, dict[int, int]()
    for span in summary.committed_spans():
        for step in range(max(span.first_step, after_step + 1), span.last_step + 1):
            size_of[step] = size_of.get(step, 0) + span.num_tokens
    max_size = _even_size([size_of[step] for step in committed if step > after_step], max_size, jobs)
    first, size, last = None, 0, after_step
    for step in committed:
        if step <= after_step:
            continue
        if first is not None and size and (size + size_of[step] > max_size or step != last + 1):
            yield StepRange(attempt=number, first_step=first, last_step=last, size=size)
            first, size = None, 0
        first = step if first is None else first
        size, last = size + size_of[step], step
    if first is not None and size:
        yield StepRange(attempt=number, first_step=first, last_step=last, size=size)


def _even_size(size_of_steps: Sequence[int], max_size: int, jobs: int) -> int:
    """At most `max_size`: tokens of ranges of which each job gets as many; `max_size` where those would be of a lower tier."""
    total = sum(size_of_steps)
    if jobs == 1 or total == 0:
        return max_size
    num_ranges = jobs * math.ceil(total / (jobs * max_size))
    even = math.ceil(total / num_ranges) + max(size_of_steps) - 1  # a range ends before the step that it cannot hold
    return min(max_size, even) if _tier(even, max_size) == 0 else max_size


def merge_ranges(ranges: Sequence[StepRange], max_size: int) -> list[StepRange]:
    """The same steps in fewer ranges: neighbours of one attempt and tier are joined, FANOUT at a time."""
    result: list[StepRange] = []
    for _, group in itertools.groupby(sorted(ranges), key=lambda steps: steps.attempt):
        of_attempt = list(group)
        while (joined := _join_once(of_attempt, max_size)) is not None:
            of_attempt = joined
        result += of_attempt
    return result


def _tier(size: int, max_size: int) -> int:
    """0 for a full shard, t for one of about max_size / FANOUT^t."""
    tier = 0
    while size * FANOUT <= max_size:
        size *= FANOUT
        tier += 1
    return tier


def _join_once(ranges: list[StepRange], max_size: int) -> list[StepRange] | None:
    """Join the first FANOUT neighbours of one tier, or as many of the highest tier as fill a shard; None: nothing to do."""
    tiers = [_tier(steps.size, max_size) for steps in ranges]
    for index in range(len(ranges) - 1):
        end, total = index, 0
        while end < len(ranges) and tiers[end] == tiers[index] and total + ranges[end].size <= max_size:
            total += ranges[end].size
            end += 1
            if end - index == FANOUT:
                break
        filled = tiers[index] == 0 and (total == max_size or (end < len(ranges) and tiers[end] == 0))
        if end - index == FANOUT or (filled and end - index >= 2):
            joined = StepRange(
                attempt=ranges[index].attempt,
                first_step=ranges[index].first_step,
                last_step=ranges[end - 1].last_step,
                size=total,
            )
            return [*ranges[:index], joined, *ranges[end:]]
    return None
