"""Links of the pages: they keep the run, come back as they were, and are refused where they were cut or are strange."""

import pytest

from train_hooks.export_format.errors import QueryError
from ui.html.places import PAGES, Place, pack, parse_href, unpack
from ui.html.sequence import parse_range

HERE = Place("trace", {"run": "a run", "lang": "ja", "text": "x & y", "span": "1-2"})


def test_links_keep_the_run_and_come_back() -> None:
    for href in (
        HERE.here(span="3-4", doc=None),
        HERE.to("steps", step=7),
        HERE.to("documents", source="a&b", document="c d/é?#"),
    ):
        page, params = parse_href(href) or ("", {})
        assert page in PAGES and (params["run"], params["lang"]) == ("a run", "ja")
    assert (parse_href(HERE.to("documents", document="c d/é?#")) or ("", {}))[1]["document"] == "c d/é?#"
    assert (parse_href(HERE.here(span=None)) or ("", {}))[1] == {"run": "a run", "lang": "ja", "text": "x & y"}
    for strange in ("https://elsewhere.example/trace", "//elsewhere.example", "javascript:alert(1)", "nowhere?a=b"):
        assert parse_href(strange) is None


def test_packed_texts_come_back_and_cut_ones_are_refused() -> None:
    document = {"text": "訓練データ <b> " * 400, "prompt": "p"}
    packed = pack(document)
    assert unpack(packed) == document and len(packed) < 200
    too_deep, too_long = pack({"a": "["})[:-4], pack({"text": "x" * 3_000_000})
    for cut in (packed[:-9], packed[:10], packed[:-3], "A", "!!!", pack({})[:-2], "W10", too_deep, too_long):
        with pytest.raises(QueryError, match="link"):
            unpack(cut)


def test_ranges_of_a_link() -> None:
    assert parse_range("12-40") == (12, 40)
    for strange in ("", "12", "-1-4", "a-b", "１-２", "9" * 30 + "-1", "1-2-3"):
        assert parse_range(strange) == (0, 0)


def test_links_do_not_repeat_a_packed_text() -> None:
    place = Place("trace", {"z": pack({"text": "a long text"}), "min": "4"})
    assert (parse_href(place.here(span="1-2")) or ("", {}))[1] == {"z": "*", "min": "4", "span": "1-2"}
    assert (parse_href(place.here(z=None)) or ("", {}))[1] == {"min": "4"}
