"""A bench file is run as a script, so its folder comes first on the import path: its name must not hide a module."""

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_no_bench_file_hides_a_module_of_the_standard_library() -> None:
    names = {path.stem for path in BENCH.glob("*.py")}
    assert "spans" in names
    assert not names & sys.stdlib_module_names
