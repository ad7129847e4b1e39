"""What the server is told at its start, and every limit with its default."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """run_dirs: the runs to serve. max_body_bytes: larger requests get 413."""

    run_dirs: tuple[Path, ...]
    max_body_bytes: int = 1 << 20
