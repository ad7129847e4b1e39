"""An exporter of a run of its own."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.example_exports import begin_attempt, begin_run
from tests.train_hooks.hook.export.exporters import Make, SlowWriter
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.hook.export.exporter import Exporter, ExporterOptions


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    run = begin_run(tmp_path)
    go = threading.Event()
    made: list[Exporter] = []

    def build(*, blocked: bool = False, error: BaseException | None = None, **options: object) -> Exporter:
        attempt = begin_attempt(tmp_path, run)
        directory = ExportPaths(tmp_path).attempt_dir(attempt.attempt)
        if not blocked:
            go.set()
        writer = SlowWriter(OsFileSystem(), directory, run, attempt, 0, go=go, error=error)
        options = {"group_interval_s": 0.01, **options}
        secret = RunReader(tmp_path).secret()
        exporter = Exporter(writer, run, attempt, 0, secret, ExporterOptions(**options))  # type: ignore[arg-type]
        exporter.go = go  # type: ignore[attr-defined]
        made.append(exporter)
        return exporter

    yield build
    go.set()
    for exporter in made:
        try:
            exporter.close()
        except ExportStopped:
            continue
