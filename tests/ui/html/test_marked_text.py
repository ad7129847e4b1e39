"""Pieces of a text with overlapping spans, against a character by character oracle; what is escaped; bars."""

import html
import random
import re
from typing import Any

from ui.html.charts import Bar, bar_chart
from ui.html.escape import attribute, text_html
from ui.html.marked_text import marked_text, pieces, shade
from ui.html.places import Place

HERE = Place("trace", {"run": "a run", "lang": "ja", "text": "x & y", "span": "1-2"})


def made_spans(chance: random.Random, length: int) -> list[dict[str, Any]]:
    spans = []
    for number in range(chance.randrange(8)):
        start = chance.randrange(length)
        end = chance.randint(start, length)
        spans.append(
            {
                "start": start, "end": end, "char_start": start if chance.random() < 0.9 else None, "char_end": end,
                "rarity_rank": number if chance.random() < 0.7 else None, "log_probability": -chance.random(),
            }
        )  # fmt: skip
    return spans


def test_every_character_knows_its_spans() -> None:
    chance = random.Random(3)
    for _ in range(400):
        length = chance.randint(1, 30)
        spans = made_spans(chance, length)
        found = pieces(spans, length)
        assert [piece.start for piece in found] == [0, *(piece.end for piece in found[:-1])] and found[-1].end == length
        for piece in found:
            for at in range(piece.start, piece.end):
                over = {
                    number for number, span in enumerate(spans)
                    if span["char_start"] is not None and span["char_start"] <= at < span["char_end"]
                }  # fmt: skip
                assert set(piece.marks) == over
            ranks = [spans[number]["rarity_rank"] for number in piece.marks]
            assert ranks == sorted(ranks, key=lambda rank: 1 << 30 if rank is None else rank)


def test_the_text_stays_the_text() -> None:
    chance = random.Random(4)
    for _ in range(200):
        text = "".join(chance.choices("ab<&>\"'\n \tあ", k=chance.randint(1, 40)))
        shown = marked_text(HERE, text, made_spans(chance, len(text)), {})
        without_numbers = re.sub(r"<sup>\d+</sup>", "", shown)
        assert html.unescape(re.sub(r"<[^>]*>", "", without_numbers)) == text


def test_shades_are_thirds_of_what_is_listed() -> None:
    assert [shade({"rarity_rank": rank}, 6) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    assert shade({"rarity_rank": None}, 6) == 3 and shade({"rarity_rank": 0}, 1) == 0


def test_every_character_is_harmless() -> None:
    for code in [*range(0x3000), 0xD800, 0xFEFF, 0xFFFE, 0xE0041, 0x1F600]:
        for shown in (text_html(chr(code)), attribute(chr(code))):
            assert not set(shown.replace('<span class="ctl">', "").replace("</span>", "")) & set("<>\"'"), hex(code)
    assert "U+202E" in text_html("\u202e") and "U+202E" in attribute("\u202e") and "<" not in attribute("\u202e<")


def test_bars_say_what_they_show() -> None:
    drawn = bar_chart(
        [Bar(1, 5, 3, "steps 1–4: 3 <times>", "steps?step=1"), Bar(5, 9, 0, "none")], label='a "chart"', checkpoint=4
    )
    assert (
        drawn.count("<rect") == 2
        and drawn.count("<a ") == 1
        and "3 &lt;times&gt;" in drawn
        and 'class="checkpoint"' in drawn
    )
    assert bar_chart([], label="") == ""
