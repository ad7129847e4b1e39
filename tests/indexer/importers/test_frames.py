"""Groups hold every item once, in order, and stay small."""

from collections.abc import Iterator

from indexer.importers.frames import GROUP_ROWS, grouped


def test_groups_are_full_but_for_the_last_and_lose_nothing() -> None:
    sizes = [0, 5, GROUP_ROWS, 3, *[1] * GROUP_ROWS, 7]
    groups = list(grouped(sizes, lambda size: size))
    assert [size for group in groups for size in group] == sizes
    assert all(sum(group) + len(group) >= GROUP_ROWS for group in groups[:-1])
    assert all(sum(group[:-1]) + len(group) - 1 < GROUP_ROWS for group in groups)
    assert list(grouped([], lambda size: size)) == []


def test_items_are_taken_when_they_are_needed() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for _ in range(3 * GROUP_ROWS):
            taken += 1
            yield 0

    next(grouped(items(), lambda size: size))
    assert taken == GROUP_ROWS
