"""The public surface, and what importing it costs."""

import subprocess
import sys

from indexer import spans


def test_public_names() -> None:
    names = {name for name in vars(spans) if not name.startswith("_")}
    modules = {"arrays", "build", "filters", "hit_kernels", "jit", "kernels", "match_kernels", "merge", "search"}
    assert names - modules - {"reference"} == set(spans.__all__)
    assert list(spans.__all__) == sorted(spans.__all__)


def test_the_reference_needs_no_numba() -> None:
    code = "import sys; sys.modules['numba'] = None; import indexer.spans.reference"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
