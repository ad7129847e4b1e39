"""Which versions of a framework an adapter was run with."""

import re
from importlib import metadata

from train_hooks.export_format.errors import InputError

__all__ = ["require_version"]

Version = tuple[int, ...]


def require_version(distribution: str, first: str, before: str, *, found: str | None = None) -> None:
    """Raises InputError unless first ≤ version < before. found: of what was imported; by default of what is installed."""
    wanted = f"{distribution}>={first},<{before}"
    try:
        found = found or metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise InputError(f"expected {wanted}, found none; pip install '{wanted}'") from None
    if not _numbers(first) <= _numbers(found) < _numbers(before):
        raise InputError(f"expected {wanted}, found {found}; this adapter knows only those: pip install '{wanted}'")


def _numbers(version: str) -> Version:
    """The release numbers: `2.6.0.dev1+cpu` → (2, 6, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()
