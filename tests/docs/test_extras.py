"""The README's table of extras is true: each part loads with its own packages alone, every other package hidden."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable

import pytest
from packaging.requirements import Requirement

from tests.docs.markdown import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"kiseki", "train_hooks", "indexer", "search_api", "ui"}
HIDE = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder

class Visible(PathFinder):
    hidden = frozenset(sys.argv[1].split(","))

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in cls.hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__.startswith(("_frozen", "zipimport"))]
sys.meta_path[sys.meta_path.index(PathFinder)] = Visible

def load(package, *, without=()):
    module = importlib.import_module(package)
    for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{package}."):
        if found.name not in without:
            load(found.name, without=without)

"""
WHAT = {
    "": """
load("indexer")
load("train_hooks.export_format")
load("ui.terminal")
load("ui.commands")
load("ui.demo")
load("kiseki", without=("kiseki.__main__",))
from ui.cli import COMMANDS
""",
    "client": "load('search_api.client'); import kiseki; kiseki.Client('http://127.0.0.1:1').close()",
    "serve": "load('search_api', without=('search_api.client', 'search_api.async_client')); load('ui.serve')",
    "ui": "load('ui.html'); load('ui.serve'); load('search_api'); import streamlit; load('ui.pages.api')",
    "train": "load('train_hooks.hook'); load('train_hooks.replay'); import kiseki; kiseki.ExportHook",
}


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that these bring, themselves included."""
    todo, done = [Requirement(text) for text in requirements], set[tuple[str, str]]()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            name = canonical(requirement.name)
            if (name, extra) in done:
                continue
            done.add((name, extra))
            todo += [
                item for item in needs(name, extra) if item.marker is None or item.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in done}


def needs(name: str, extra: str) -> list[Requirement]:
    """What a distribution requires; kiseki as pyproject.toml says it, not as it was when it was installed."""
    if name == "kiseki":
        return [Requirement(text) for text in PYPROJECT["optional-dependencies"].get(extra, PYPROJECT["dependencies"])]
    try:
        return [Requirement(text) for text in importlib.metadata.requires(name) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []  # for another system


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hidden(extra: str) -> list[str]:
    """Installed top-level modules that `kiseki[extra]` does not bring."""
    brought = closure([f"kiseki[{extra}]" if extra else "kiseki"])
    owners = importlib.metadata.packages_distributions()
    return sorted(
        name for name, of in owners.items() if not {canonical(owner) for owner in of} & brought and name not in OURS
    )


@pytest.mark.parametrize("extra", WHAT, ids=lambda extra: extra or "plain")
def test_a_part_loads_with_its_own_packages_alone(extra: str) -> None:
    assert "pytest" in hidden(extra) and "numpy" not in hidden(extra)
    done = subprocess.run(
        [sys.executable, "-c", HIDE + WHAT[extra], ",".join(hidden(extra))],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_readme_names_every_extra() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for extra in PYPROJECT["optional-dependencies"]:
        if extra not in ("dev", "test"):
            assert f"[{extra}]`" in readme, extra
