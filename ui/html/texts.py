"""The pages' words in English and Japanese. English stands in the code; this is the Japanese of each sentence.

A test holds that every sentence of the code is here, with the same names in braces.
"""

from collections.abc import Mapping
from functools import partial
from typing import Protocol

from ui.html.locale.ja import documents, every_page, runs, search, sequence, sql, steps, trace

__all__ = ["JAPANESE", "LANGUAGES", "Say", "say_in"]


class Say(Protocol):
    """A sentence in the language of the page, its names in braces filled in."""

    def __call__(self, text: str, /, **values: object) -> str:
        """The sentence."""


LANGUAGES: Mapping[str, str] = {"en": "English", "ja": "日本語"}


def say_in(lang: str) -> Say:
    """The words of a language of LANGUAGES."""
    return partial(_say, JAPANESE if lang == "ja" else {})


def _say(words: Mapping[str, str], text: str, /, **values: object) -> str:
    return words.get(text, text).format(**values)


JAPANESE: Mapping[str, str] = {
    **every_page.WORDS,
    **trace.WORDS,
    **search.WORDS,
    **sequence.WORDS,
    **steps.WORDS,
    **documents.WORDS,
    **sql.WORDS,
    **runs.WORDS,
}
