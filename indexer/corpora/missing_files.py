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

    def of_id(self, document_id: str) -> list[str]:
        """The files that an id may name: one, of RedPajama-V2's those that end like it; none where it names none."""
        file = file_of_id(document_id)
        if file is None or positional_id(document_id) is None:
            return [name for name in self._alike(file) if name == file]
        return self._alike(file)

    def missing(self, document_id: str) -> str | None:
        """What to say of a file that is not there; None where it is, or where the id names none."""
        file = file_of_id(document_id)
        if file is None or self.of_id(document_id):
            return None
        alike = self._alike(file)
        if alike:
            what = f"its file {file} is called {alike[0]} here"
            return f"{what}; paths are those below --corpus: give the directory that was given then"
        return f"its file {file} is not in the corpus; paths are those below --corpus"

    def _alike(self, file: str | None) -> list[str]:
        if file is None:
            return []
        return [name for name in self._of.get(file.rpartition("/")[2], ()) if _ends_with(name, file)]


def _ends_with(one: str, other: str) -> bool:
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")
