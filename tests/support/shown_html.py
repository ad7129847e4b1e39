"""What a reader sees of a piece of HTML: its text, its links, its elements. It is read as a browser reads it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["Element", "ShownHtml", "read_html"]

_VOID = {"br"}


@dataclass(slots=True)
class Element:
    """An element: its name, its attributes, the text in it, and the names of the elements around it."""

    name: str
    attributes: dict[str, str]
    around: tuple[str, ...]
    text: str = ""


@dataclass(slots=True)
class ShownHtml(HTMLParser):
    """All elements in the order of their begin, and the whole text. A tag that is closed out of turn is an error."""

    elements: list[Element] = field(default_factory=list)
    text: str = ""
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin an element; no attribute is there twice."""
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), (tag, attrs)
        element = Element(tag, attributes, tuple(outer.name for outer in self._open))
        self.elements.append(element)
        if tag in _VOID:
            self.handle_data(" ")
        else:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        """End the element that was begun last."""
        assert self._open and self._open[-1].name == tag, (tag, [element.name for element in self._open])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        """Text counts for each element around it; titles of drawings are tooltips, no text of the page."""
        if self._open and self._open[-1].name == "title":
            self._open[-1].text += data
            return
        self.text += data
        for element in self._open:
            element.text += data

    @property
    def links(self) -> dict[str, str]:
        """Where each link leads, by its text, or by its label where it is drawn; of equal ones the first."""
        found: dict[str, str] = {}
        for element in self.named("a"):
            found.setdefault(element.text or element.attributes.get("aria-label", ""), element.attributes["href"])
        return found

    def named(self, name: str, **attributes: str) -> list[Element]:
        """Elements of a name with these attributes; `class_` asks for one of the classes."""
        wanted = {key.removesuffix("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            element
            for element in self.elements
            if element.name == name
            and all(
                value in element.attributes.get(key, "").split()
                if key == "class"
                else element.attributes.get(key) == value
                for key, value in wanted.items()
            )
        ]

    def texts(self, name: str, **attributes: str) -> list[str]:
        """The texts of `named`."""
        return [element.text for element in self.named(name, **attributes)]

    def tooltips(self) -> list[str]:
        """Titles of drawn shapes and of links."""
        titles = [element.text for element in self.named("title")]
        return titles + [element.attributes["title"] for element in self.elements if "title" in element.attributes]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of all rows of tables, heads too."""
        rows: list[list[str]] = []
        for element in self.elements:
            if element.name == "tr":
                rows.append([])
            elif element.name in ("td", "th"):
                rows[-1].append(element.text)
        return rows


def read_html(html: str) -> ShownHtml:
    """Read it to its end, where every element is closed."""
    shown = ShownHtml()
    shown.feed(str(html))
    shown.close()
    assert not shown._open, [element.name for element in shown._open]
    return shown
