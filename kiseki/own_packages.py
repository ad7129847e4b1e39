"""The four packages `train_hooks`, `indexer`, `search_api` and `ui` have ordinary names, which other projects use too.

1. The command is a process of its own: there, these names always mean ours (`prefer_ours`), whatever stands first on the path.
2. In a program of the user's, its own packages come first, as everywhere in Python. Where it has one of that name, asking for
   ours is an error that says so (`check_ours`).
3. pip lets one distribution overwrite the files of another. `overwritten_by` says which one did.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__all__ = ["OWN", "check_ours", "overwritten_by", "prefer_ours"]

OWN = ("train_hooks", "indexer", "search_api", "ui")
ROOT = Path(__file__).resolve().parents[1]


class _OwnFinder:
    """Finds the four packages beside this one, and nothing else."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)], target) if path is None and name in OWN else None


def prefer_ours() -> None:
    """From now on the four names mean ours in this process."""
    if _OwnFinder not in sys.meta_path:
        sys.meta_path.insert(0, _OwnFinder)


def check_ours(package: str) -> None:
    """Raises ImportError where `package` is one of the four names, and here it means a package of somebody else's."""
    if package not in OWN:
        return
    loaded = sys.modules.get(package)
    spec = importlib.util.find_spec(package) if loaded is None else loaded.__spec__
    where = [Path(place).resolve() for place in (spec.submodule_search_locations or ())] if spec else []
    if ROOT / package not in where:
        found = str(where[0] if where else getattr(spec, "origin", None) or "nothing")
        raise ImportError(
            f"expected the package `{package}` of kiseki in {ROOT / package}, found {found}; rename that one, take it off "
            "the path, or ask kiseki in a process of its own: the command `kiseki`, or `kiseki serve` and kiseki.Client",
            name=package,
        )


def overwritten_by(package: str) -> list[str]:
    """The other installed distributions that have files in our package of that name."""
    import importlib.metadata  # slow, and needed for this message alone

    owners = importlib.metadata.packages_distributions().get(package, [])
    return sorted({owner for owner in owners if owner.lower() != "kiseki"})
