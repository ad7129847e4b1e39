"""The attempts of a run as a timeline: what each contributed, what was rolled back, where something is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.escape import EMPTY, Html, joined, tag
from ui.html.messages import message_html
from ui.html.places import Place
from ui.html.tables import facts_html, table_html
from ui.html.texts import Say

__all__ = ["attempts_html", "gaps_html", "health_html", "timeline_html"]

Json = Mapping[str, Any]
WIDTH, LEFT, RIGHT, ROW, TOP = 900, 96, 16, 34, 10
GAPS_SHOWN = 100


def timeline_html(place: Place, say: Say, attempts: Sequence[Json], gaps: Sequence[Json]) -> Html:
    """A row an attempt over steps: what counts solid, what a later attempt superseded pale, gaps as marks."""
    shown = [attempt for attempt in attempts if attempt["first_step"] is not None]
    if not shown:
        return message_html(say("No step of this run is indexed yet."))
    last = max(attempt["last_step"] for attempt in shown)
    rows = {attempt["attempt"]: index for index, attempt in enumerate(shown)}
    drawn = [_attempt_row(place, say, attempt, rows, last) for attempt in shown]
    drawn += [
        _gap_mark(place, say, gap, rows[gap["attempt"]], last) for gap in gaps[:GAPS_SHOWN] if gap["attempt"] in rows
    ]
    height = TOP + ROW * len(shown) + 22
    ground = height - 18
    axis = (
        tag("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=ground, y2=ground)
        + tag("text", "1", x=LEFT, y=height - 4)
        + tag("text", f"{last:,}", x=WIDTH - RIGHT, y=height - 4, text_anchor="end")
    )
    label = say("Attempts over steps; pale: rolled back, superseded by a later attempt")
    chart = tag(
        "svg", axis + joined(drawn), class_="chart", viewBox=f"0 0 {WIDTH} {height}", role="group", aria_label=label
    )
    return chart + tag("p", label, class_="dim")


def attempts_html(say: Say, attempts: Sequence[Json]) -> Html:
    """The same as a table."""
    names = (
        say("attempt"), say("began (UTC)"), say("resumed from"), say("steps"), say("of these count"), say("rolled back"),
        say("ranks"), say("export format"),
    )  # fmt: skip
    return table_html(names, (_cells(say, attempt) for attempt in attempts), numbers=[False] * len(names))


def gaps_html(place: Place, say: Say, missing: Json) -> Html:
    """Gaps with their reasons; or that there are none."""
    gaps = missing["gaps"]
    if not gaps:
        return tag("p", say("None: the trainer recorded no gap."))
    names = (say("attempt"), say("step"), say("data-parallel rank"), say("sequences missing"), say("reason"))
    rows = [
        [
            str(gap["attempt"]), place.link(place.to("steps", step=gap["global_step"]), f"{gap['global_step']:,}"),
            str(gap["dp_rank"]), f"{gap['num_rows']:,}", gap["reason"] or "",
        ]
        for gap in gaps[:GAPS_SHOWN]
    ]  # fmt: skip
    more = missing["num_gaps"] - min(len(gaps), GAPS_SHOWN)
    note = tag("p", say("and {n} more", n=f"{more:,}"), class_="dim") if more > 0 else EMPTY
    return table_html(names, rows, numbers=[False] * len(names)) + note


def health_html(say: Say, run: Json, missing: Json) -> Html:
    """Sizes, how complete the steps are, and how the index is."""
    length = say("tokens a sequence, at most") if run["shorter_rows"] else say("tokens a sequence")
    sizes = [
        (say("steps that count"), f"{missing['num_steps']:,}"),
        (say("packed sequences"), f"{run['num_sequences']:,}"),
        (say("tokens"), f"{run['num_tokens']:,}"),
        (length, f"{run['sequence_length']:,}"),
        (say("tokenizer"), say("yes") if run["has_tokenizer"] else say("no")),
    ]
    state = [
        (say("steps missing"), f"{missing['num_missing']:,}"),
        (say("gaps"), f"{missing['num_gaps']:,}"),
        (say("steps rolled back"), f"{missing['num_superseded']:,}"),
        (say("steps without an update"), f"{missing['num_without_update']:,}"),
        (say("generation of the index"), f"{run['generation']:,}"),
        (say("shards that answer"), f"{run['shards_total'] - run['shards_failed']:,} / {run['shards_total']:,}"),
    ]
    return facts_html(sizes) + facts_html(state) + _verdict(say, run, missing)


def _verdict(say: Say, run: Json, missing: Json) -> Html:
    if run["shards_failed"]:
        text = say("{n} shards are damaged and are not asked: run `kiseki index --verify`.", n=run["shards_failed"])
        return message_html(text, "error")
    if missing["num_missing"] or missing["num_gaps"]:
        return message_html(
            say("Something is missing, so a text that is not found may have been trained on all the same."), "warning"
        )
    return message_html(say("Complete: every step up to the last indexed one is here, and nothing was left out."))


def _attempt_row(place: Place, say: Say, attempt: Json, rows: Mapping[int, int], last: int) -> Html:
    number, y = attempt["attempt"], TOP + ROW * rows[attempt["attempt"]]
    drawn = [tag("text", say("attempt {n}", n=number), x=LEFT - 8, y=y + 17, text_anchor="end")]
    if attempt["parent_attempt"] in rows:
        x, parent_y = _x(attempt["resume_step"] + 1, last), TOP + ROW * rows[attempt["parent_attempt"]]
        drawn.append(tag("line", class_="axis", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=parent_y + 24, y2=y))
    for first, end, counts in _stretches(attempt):
        words = say("it counts") if counts else say("rolled back")
        label = say("attempt {n}, steps {a}–{b}: {what}", n=number, a=f"{first:,}", b=f"{end:,}", what=words)
        x0, x1 = _x(first, last), _x(end + 1, last)
        shape = tag(
            "rect", tag("title", label), class_="bar" if counts else "bar dim", x=f"{x0:.1f}", y=y,
            width=f"{max(2.0, x1 - x0):.1f}", height=24,
        )  # fmt: skip
        href = place.to("steps", step=first, attempt=number, attempt_of=None if counts else number)
        drawn.append(tag("a", shape, data_go=True, href=href, aria_label=label))
    return joined(drawn)


def _stretches(attempt: Json) -> list[tuple[int, int, bool]]:
    """(first step, last step, whether it counts) of what counts of an attempt, and of what was rolled back."""
    first, last = attempt["first_step"], attempt["last_step"]
    if not attempt["canonical"]:
        return [(first, last, False)]
    end = last if attempt["canonical_last_step"] is None else min(last, attempt["canonical_last_step"])
    return [stretch for stretch in ((first, end, True), (end + 1, last, False)) if stretch[0] <= stretch[1]]


def _gap_mark(place: Place, say: Say, gap: Json, row: int, last: int) -> Html:
    step = gap["global_step"]
    label = say("gap in step {n}, rank {r}: {why}", n=f"{step:,}", r=gap["dp_rank"], why=gap["reason"] or "")
    x = (_x(step, last) + _x(step + 1, last)) / 2
    dot = tag("circle", tag("title", label), class_="mark", cx=f"{x:.1f}", cy=TOP + ROW * row + 12, r=5)
    return tag("a", dot, data_go=True, href=place.to("steps", step=step), aria_label=label)


def _cells(say: Say, attempt: Json) -> list[str]:
    if attempt["first_step"] is None:
        steps, counts, lost = say("none indexed"), "", ""
    else:
        ranges = {
            kept: ", ".join(f"{first:,}–{end:,}" for first, end, counted in _stretches(attempt) if counted is kept)
            for kept in (True, False)
        }
        steps, counts, lost = f"{attempt['first_step']:,}–{attempt['last_step']:,}", ranges[True], ranges[False]
    resumed = "–"
    if attempt["parent_attempt"] is not None:
        resumed = say("step {s} of attempt {n}", s=f"{attempt['resume_step']:,}", n=attempt["parent_attempt"])
    began = attempt["started"].replace("T", " ").partition(".")[0].removesuffix("Z")
    return [
        str(attempt["attempt"]), began, resumed, steps, counts or "–", lost or "–", f"{attempt['num_writers']:,}",
        str(attempt["export_format_version"]),
    ]  # fmt: skip


def _x(step: float, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(1, last)
