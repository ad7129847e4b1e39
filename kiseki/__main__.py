"""The command `kiseki`, also as `python -m kiseki`."""

import sys

from kiseki import __version__
from kiseki.own_packages import OWN, overwritten_by, prefer_ours

__all__ = ["main"]

prefer_ours()  # here and not in `main`, since a process that this one spawns imports this module and never calls `main`


def main() -> None:
    """Run the command line. Exit codes: 0 found or holds, 1 nothing found or a check failed, 2 bad input, 3 incomplete."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        print(f"kiseki {__version__}")  # before anything is loaded
        return
    try:
        from ui.cli import main as run
    except (ImportError, AttributeError) as error:
        print(f"kiseki: {_broken(error)}", file=sys.stderr)
        sys.exit(2)
    run()


def _broken(error: Exception) -> str:
    others = {package: owners for package in OWN if (owners := overwritten_by(package))}
    if not others:
        return f"this installation is not whole: {error}; run pip install --force-reinstall kiseki"
    named = "; ".join(f"`{package}` by {', '.join(owners)}" for package, owners in others.items())
    return (
        f"packages of kiseki were overwritten by other distributions: {named} ({error}); "
        "install kiseki into an environment of its own, or remove them and run pip install --force-reinstall kiseki"
    )


if __name__ == "__main__":
    main()
