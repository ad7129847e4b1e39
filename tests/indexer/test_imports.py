"""What each part loads: no torch on the search side, and no more than a question needs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import update_index
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks import Segment
from train_hooks.export_format.writing.attempts import RunSpec


@pytest.mark.parametrize(
    "modules", ["indexer", "search_api", "indexer.trace.trace, indexer.build.update, search_api.app", "ui.cli"]
)
def test_search_side_imports_no_torch(modules: str) -> None:
    every_command = "; [command.load() for command in ui.cli.COMMANDS]" if modules == "ui.cli" else ""
    script = (
        f"import sys, {modules}{every_command}; print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def loaded_by(code: str) -> set[str]:
    """All modules of a process that ran `code`."""
    script = f"{code}\nimport sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


WRITERS = ("indexer.build", "indexer.metrics", "indexer.statistics", "indexer.importers")


def test_a_reader_loads_nothing_that_writes() -> None:
    loaded = loaded_by("import indexer.reader")
    assert {name for name in loaded if name.startswith(WRITERS)} == set()
    assert loaded & {"numba", "llvmlite", "pandas", "duckdb", "indexer.jit", "pydivsufsort"} == set()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    rows = np.arange(16).reshape(2, 8)
    document = Segment(start=0, length=8, source="books", document_id="one", document_token_offset=0)
    step = MadeStep(microbatches={0: [rows]}, segments={0: [[[document], [document]]]})
    make_attempt(run_dir, RunSpec(sequence_length=8, vocab_size=50, config={}), [step] * 3)
    update_index(run_dir)
    return run_dir


def test_a_search_without_ngrams_loads_no_kernel_and_no_pandas(small_run: Path) -> None:
    code = f"""
from indexer.answers.not_found import not_found_error
from indexer.reader import IndexReader
from indexer.search.search import search
reader = IndexReader.open({str(small_run)!r})
assert search(reader, "step:1..4").count and not search(reader, "source:none").count
"""
    assert loaded_by(code) & {"numba", "llvmlite", "pandas", "duckdb"} == set()


def test_a_count_loads_no_kernel_and_no_pandas(small_run: Path) -> None:
    code = f"""
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.counts import count_of_ngram
reader = IndexReader.open({str(small_run)!r})
count_of_ngram(reader, [1], Selection()), count_of_ngram(reader, [1], Selection(source="none"))
"""
    assert loaded_by(code) & {"numba", "llvmlite", "pandas", "duckdb"} == set()
