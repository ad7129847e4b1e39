"""A printed table whose numbers become figures of the history."""

from bench.support.history import Figures

__all__ = ["Table"]


class Table:
    """Prints rows, and keeps their numbers as figures under the heading before them: of `p50/p95` the p50."""

    def __init__(self) -> None:
        self.figures = Figures()
        self._heading: tuple[str, tuple[str, ...]] = ("", ())

    def row(self, name: str, *values: object, kept: bool = True) -> None:
        """A line of the table. One without a number is a heading; one that is not `kept` is no figure."""
        cells = [str(value) for value in values]
        print(f"{name:58} " + " ".join(f"{cell:>14}" for cell in cells), flush=True)
        numbers = [_number(cell) for cell in cells]
        if all(number is None for number in numbers):
            self._heading = (name, tuple(cells))
            return
        if not kept:
            return
        heading, columns = self._heading if name.startswith("  ") else ("", ())
        for index, number in enumerate(numbers):
            if number is not None:
                column = columns[index] if index < len(columns) else ""
                figure = ", ".join(filter(None, (heading, name.strip(), column)))
                times = sum(known.partition(" #")[0] == figure for known in self.figures.values)
                self.figures.add(f"{figure} #{times + 1}" if times else figure, number)


def _number(cell: str) -> float | None:
    try:
        return float(cell.partition("/")[0].strip().removesuffix("x").replace(",", ""))
    except ValueError:
        return None
