"""Is the file that an id names in the corpus?"""

from collections.abc import Iterable

from indexer.corpora.layouts import file_of_id, positional_id

__all__ = ["FileNames"]


class FileNames:
    """The files of a corpus, by their own names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._of: dict[str, list[str]] = {}
        for name in names:
            self._of.setdefault(name.rpartition("/")[2], []).append(name)

    def missing(self, document_id: str) -> str | None:
        """What to say of a file that is not there; None where it is, or where the id names none."""
        file = file_of_id(document_id)
        if file is None:
            return None
        alike = [name for name in self._of.get(file.rpartition("/")[2], ()) if _ends_with(name, file)]
        if file in alike or (alike and positional_id(document_id) is not None):
            return None
        if alike:
            what = f"its file {file} is called {alike[0]} here"
            return f"{what}; paths are those below --corpus: give the directory that was given then"
        return f"its file {file} is not in the corpus; paths are those below --corpus"


def _ends_with(one: str, other: str) -> bool:
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")
