"""Steps of a run of a million steps over the API: thinned out, a window of it, and one page.

    python bench/steps.py --steps 1e6

Makes a run of one step, indexes it, and puts synthetic steps and their metrics (loss, lr, grad_norm and three more, with a
planted spike every 10,000 steps) in the place of its part, as `kiseki index` lays them out. Then a real server answers, in
this process; "first" is the first question of its kind, "again" the best of three more. Not in the figures: the page's drawing.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi.testclient import TestClient

from bench.support.history import Figures, bench_options, recorded
from indexer.build.parts import PART_SCHEMAS, write_sorted
from indexer.build.update import update_index
from indexer.reader import IndexReader
from search_api import Limits, Settings, create_app
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks.export_format.writing.attempts import RunSpec

NAMES = ("loss", "lr", "grad_norm", "tokens_per_s", "memory_gib", "weight_norm")
SPIKE_EVERY = 10_000


def write_steps(part: Path, num_steps: int) -> None:
    """steps.parquet and records.parquet of a part."""
    rng, steps = np.random.default_rng(0), np.arange(1, num_steps + 1)
    metrics = {name: rng.gamma(4, 0.25, num_steps) for name in NAMES}
    metrics["loss"] = 2 + 6 * np.exp(-steps / (num_steps / 10)) + 0.05 * rng.normal(size=num_steps)
    metrics["lr"] = 3e-4 * np.minimum(steps / 2000, 0.5 + 0.5 * np.cos(np.pi * steps / num_steps))
    metrics["loss"][SPIKE_EVERY - 1 :: SPIKE_EVERY] += 2
    columns: dict[str, Any] = {
        "attempt": np.ones(num_steps, np.int32), "global_step": steps, "status": np.full(num_steps, "applied"),
        "num_sequences": np.full(num_steps, 1024), "num_tokens": np.full(num_steps, 1024 * 4096),
    }  # fmt: skip
    write_sorted(part / "steps.parquet", PART_SCHEMAS["steps"], [pa.table(columns, schema=PART_SCHEMAS["steps"])])
    num = num_steps * len(NAMES)
    values = np.stack([metrics[name] for name in NAMES], axis=1).ravel()
    records: dict[str, Any] = {field.name: pa.nulls(num, field.type) for field in PART_SCHEMAS["records"]}
    records |= {
        "attempt": np.ones(num, np.int32), "global_step": np.repeat(steps, len(NAMES)), "dp_rank": np.zeros(num, np.int32),
        "kind": np.full(num, "metrics"), "unix_time_s": np.repeat(1.8e9 + steps, len(NAMES)),
        "name": np.tile(NAMES, num_steps), "value": values,
    }  # fmt: skip
    table = pa.table(records, schema=PART_SCHEMAS["records"])
    write_sorted(part / "records.parquet", PART_SCHEMAS["records"], [table], without_statistics={"value"})


def main() -> None:
    parser = bench_options(__doc__)
    parser.add_argument("--steps", type=float, default=1e6)
    options = parser.parse_args()
    num_steps = int(options.steps)
    with tempfile.TemporaryDirectory() as directory, recorded("steps", options) as figures:
        run_dir = Path(directory) / "run"
        spec = RunSpec(sequence_length=8, vocab_size=100, run_id="long", config={})
        make_attempt(run_dir, spec, [MadeStep(microbatches={0: [np.arange(16).reshape(2, 8)]})])
        update_index(run_dir)
        reader = IndexReader.open(run_dir)
        [part] = reader.generation.parts
        write_steps(reader.paths.part_dir(part), num_steps)
        with TestClient(create_app(Settings(run_dirs=(run_dir,), limits=Limits(deadline_s=60)))) as client:
            print(f"{num_steps:,} steps of {len(NAMES)} metrics\n")
            print(f"{'question':<40}{'first s':>9}{'again s':>9}{'rows':>8}{'spikes':>8}{'KB':>8}")
            for name, asked in QUESTIONS.items():
                measure(
                    figures,
                    client,
                    name,
                    {key: int(value * num_steps) if value < 1 else value for key, value in asked.items()},
                )


QUESTIONS: dict[str, dict[str, float]] = {
    "all steps, 2,000 points": {"max_points": 2000},
    "all steps, 6,000 points": {"max_points": 6000},
    "a tenth of them, 2,000 points": {"first_step": 0.5, "last_step": 0.6, "max_points": 2000},
    "1,000 steps, every one": {"first_step": 0.5, "limit": 1000},
}


def measure(figures: Figures, client: TestClient, name: str, asked: dict[str, float]) -> None:
    """One line of the table."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        response = client.get("/v1/steps", params=asked)
        times.append(time.perf_counter() - started)
        assert response.status_code == 200, response.text
    rows = response.json()["steps"]
    spikes = sum(bool(row["spikes"]) for row in rows)
    figures.add(f"{name}, first", times[0], "s")
    figures.add(f"{name}, again", min(times[1:]), "s")
    print(
        f"{name:<40}{times[0]:>9.2f}{min(times[1:]):>9.2f}{len(rows):>8,}{spikes:>8,}{len(response.content) / 1e3:>8,.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
