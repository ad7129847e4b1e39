"""The package `kiseki`: what it exports, what it loads, and what it says where its parts are not ours."""

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import kiseki
from indexer.build.update import update_index
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks.export_format.writing.attempts import RunSpec

ROOT = Path(__file__).parents[2]


def python(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a directory, which stands first on the path."""
    environment = {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=directory, capture_output=True, text=True)


def test_public_names() -> None:
    assert kiseki.__all__ == ["Client", "ExportHook", "Segment", "__version__", "open_run", "trace"]
    assert dir(kiseki) == sorted(kiseki.__all__)
    for name in kiseki.__all__:
        assert getattr(kiseki, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        kiseki.nothing_of_that_name  # noqa: B018
    assert resources.files("kiseki").joinpath("py.typed").is_file()


def test_the_import_loads_nothing(tmp_path: Path) -> None:
    code = "import kiseki, sys; print(*(set(sys.modules) & {'numpy', 'torch', 'httpx', 'indexer', 'train_hooks'}))"
    done = python(code, tmp_path)
    assert done.stdout == "\n" and done.returncode == 0, done.stderr


def test_a_run_is_opened_and_traced(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 90, (2, 32))
    spec = RunSpec(run_id="small", sequence_length=32, vocab_size=100, config={})
    make_attempt(tmp_path, spec, [MadeStep(microbatches={0: [rows]})])
    update_index(tmp_path)
    run = kiseki.open_run(tmp_path)
    tokens = run.sequence_at(run.shards[0], 0).tokens[:12].tolist()
    by_reader = kiseki.trace(run, token_ids=tokens, min_length=12)
    by_path = kiseki.trace(tmp_path, token_ids=tokens, min_length=12)
    assert list(by_reader.spans[0].token_ids) == tokens and by_path.spans[0].count == by_reader.spans[0].count >= 1
    assert not kiseki.trace(run, token_ids=tokens, min_length=12, before_step=1).spans


@pytest.mark.parametrize("package", ["ui", "indexer", "search_api", "train_hooks"])
def test_the_command_works_beside_a_package_of_the_same_name(tmp_path: Path, package: str) -> None:
    """The user's project stands first on the path, and has its own `ui`."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('the package of the project')")
    code = "import sys; sys.argv = ['kiseki', 'count', '--help']; from kiseki.__main__ import main; main()"
    done = python(code, tmp_path)
    assert "Count how often exactly this text occurs." in done.stdout, done.stderr


def test_a_program_with_a_package_of_the_same_name_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "indexer").mkdir()
    (tmp_path / "indexer" / "__init__.py").write_text("OWN = True")
    for imported in ("", "import indexer; assert indexer.OWN\n"):
        done = python(imported + "import kiseki; kiseki.trace", tmp_path)
        assert done.returncode == 1
        message = done.stderr.splitlines()[-1]
        assert (
            message.startswith("ImportError: expected the package `indexer` of kiseki in ") and str(tmp_path) in message
        )
    assert python("import kiseki; print(kiseki.Segment.__name__)", tmp_path).stdout == "Segment\n"


def test_an_overwritten_package_names_who_did_it(tmp_path: Path) -> None:
    """Another distribution put its files over ours."""
    for package in ("kiseki", "ui"):
        (tmp_path / package).mkdir()
        for module in (ROOT / package).glob("*.py"):
            (tmp_path / package / module.name).write_bytes(module.read_bytes())
    (tmp_path / "ui" / "cli.py").write_text("APP = 1")
    record = tmp_path / "other_project-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: other-project\nVersion: 1.0\n")
    (record / "RECORD").write_text("ui/cli.py,,\n")
    done = python("import sys; sys.argv = ['kiseki', 'doctor']; from kiseki.__main__ import main; main()", tmp_path)
    assert done.returncode == 2
    assert "`ui` by other-project" in done.stderr and "environment of its own" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    for module, name, extra in (("httpx", "Client", "client"), ("torch", "ExportHook", "train")):
        code = f"import sys; sys.modules[{module!r}] = None; import kiseki; kiseki.{name}"
        assert f"pip install 'kiseki[{extra}]'" in python(code, tmp_path).stderr
