"""Metrics as they are read from a file: numbers by step and name, and what could not be read."""

from dataclasses import dataclass, field

import pyarrow as pa

__all__ = ["METRIC_SCHEMA", "MetricRows"]

METRIC_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("step", pa.int64()),
        ("unix_time_s", pa.float64()),
        ("name", pa.string()),
        ("value", pa.float64()),
    ]
)
MAX_PROBLEMS = 20


@dataclass(kw_only=True, slots=True)
class MetricRows:
    """Columns that grow as a file is read. problems: the first MAX_PROBLEMS of num_problems; notes: what is no problem."""

    steps: list[int] = field(default_factory=list)
    times: list[float | None] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_problems: int = 0

    def add(self, step: int, unix_time_s: float | None, name: str, value: float) -> None:
        """One number."""
        self.steps.append(step)
        self.times.append(unix_time_s)
        self.names.append(name)
        self.values.append(value)

    def problem(self, text: str) -> None:
        """Something that could not be read, with its place."""
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def table(self, step_offset: int) -> pa.Table:
        """All numbers, of METRIC_SCHEMA; `position` counts them as the file had them."""
        steps = [step + step_offset for step in self.steps]
        columns = [range(len(steps)), steps, self.times, self.names, self.values]
        return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, METRIC_SCHEMA, strict=True)],
                        schema=METRIC_SCHEMA)  # fmt: skip
