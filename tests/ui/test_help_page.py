"""The page of helps in docs is what the commands say now."""

from pathlib import Path

from ui.help_pages import help_page


def test_the_page_is_not_stale() -> None:
    written = (Path(__file__).parents[2] / "docs" / "help.md").read_text(encoding="utf-8")
    assert written == help_page(), "run `python -m ui.help_pages docs/help.md`"
    assert written.count("\n## kiseki") > 20
