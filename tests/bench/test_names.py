"""A bench file is run as a script, so its folder comes first on the import path: its name must not hide a module."""

import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
MOST_ENTRIES = 25


@pytest.mark.parametrize("folder", [BENCH, BENCH / "support"], ids=lambda folder: folder.name)
def test_no_bench_file_hides_a_module_of_the_standard_library(folder: Path) -> None:
    names = {path.stem for path in folder.glob("*.py")}
    assert names and not names & sys.stdlib_module_names


def test_the_folder_stays_a_list_that_one_can_read() -> None:
    assert len([path for path in BENCH.iterdir() if path.name != "__pycache__"]) <= MOST_ENTRIES
