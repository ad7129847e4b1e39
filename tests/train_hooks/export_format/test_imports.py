"""What may be imported by whom."""

import subprocess
import sys

import pytest

import train_hooks

STANDARD = sorted(sys.stdlib_module_names)
LIST_MODULES = """
import pkgutil, sys, importlib
before = set(sys.modules)
package = importlib.import_module("train_hooks.export_format")
for module in pkgutil.iter_modules(package.__path__, "train_hooks.export_format."):
    importlib.import_module(module.name)
print("\\n".join(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def output_of(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_export_format_imports_the_standard_library_numpy_and_pyarrow_alone() -> None:
    foreign = set(output_of(LIST_MODULES)) - set(STANDARD)

    assert {name for name in foreign if not name.startswith("_")} <= {
        "cython_runtime",
        "numpy",
        "pyarrow",
        "train_hooks",
    }


@pytest.mark.parametrize(
    "module", ["train_hooks", "train_hooks.hook.export.exporter", "train_hooks.export_format.writing.attempts"]
)
def test_torch_is_not_imported(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(name.split('.')[0] for name in sys.modules))"

    assert "torch" not in output_of(code)


def test_the_public_names() -> None:
    assert train_hooks.__all__ == sorted(train_hooks.__all__)
    assert {"ExportHook", "Segment", "SequenceAddress", "StepStatus"} <= set(train_hooks.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = train_hooks.Nothing
