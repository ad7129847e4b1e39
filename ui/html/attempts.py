"""The attempts of a run as a timeline: what each contributed, what was rolled back, where something is missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.coverage import facts_html
from ui.html.escape import attribute, text_html
from ui.html.messages import message_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["attempts_html", "gaps_html", "health_html", "timeline_html"]

Json = Mapping[str, Any]
WIDTH, LEFT, RIGHT, ROW, TOP = 900, 96, 16, 34, 10
GAPS_SHOWN = 100


def timeline_html(place: Place, say: Say, attempts: Sequence[Json], gaps: Sequence[Json]) -> str:
    """A row an attempt over steps: what counts solid, what a later attempt superseded pale, gaps as marks."""
    shown = [attempt for attempt in attempts if attempt["first_step"] is not None]
    if not shown:
        return message_html(say("No step of this run is indexed yet."))
    last = max(attempt["last_step"] for attempt in shown)
    rows = {attempt["attempt"]: index for index, attempt in enumerate(shown)}
    drawn = [_row(place, say, attempt, rows, last) for attempt in shown]
    drawn += [_mark(place, say, gap, rows[gap["attempt"]], last) for gap in gaps[:GAPS_SHOWN] if gap["attempt"] in rows]
    height = TOP + ROW * len(shown) + 22
    ground = height - 18
    axis = (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{ground}" y2="{ground}"/>'
        f'<text x="{LEFT}" y="{height - 4}">1</text>'
        f'<text x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">{last:,}</text>'
    )
    label = say("Attempts over steps; pale: rolled back, superseded by a later attempt")
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="group" aria-label="{attribute(label)}">{axis}'
        f'{"".join(drawn)}</svg><p class="dim">{text_html(label)}</p>'
    )


def attempts_html(say: Say, attempts: Sequence[Json]) -> str:
    """The same as a table."""
    names = (
        say("attempt"), say("began (UTC)"), say("resumed from"), say("steps"), say("of these count"), say("rolled back"),
        say("ranks"), say("export format"),
    )  # fmt: skip
    head = "".join(f'<th scope="col">{text_html(name)}</th>' for name in names)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(_table_row(say, attempt) for attempt in attempts)}</tbody></table></div>"
    )


def gaps_html(place: Place, say: Say, missing: Json) -> str:
    """Gaps with their reasons; or that there are none."""
    gaps = missing["gaps"]
    if not gaps:
        return f"<p>{text_html(say('None: the trainer recorded no gap.'))}</p>"
    names = (say("attempt"), say("step"), say("data-parallel rank"), say("sequences missing"), say("reason"))
    head = "".join(f'<th scope="col">{text_html(name)}</th>' for name in names)
    rows = "".join(
        f"<tr><td>{gap['attempt']}</td><td>{_step(place, gap['global_step'])}</td><td>{gap['dp_rank']}</td>"
        f"<td>{gap['num_rows']:,}</td><td>{text_html(gap['reason'] or '')}</td></tr>"
        for gap in gaps[:GAPS_SHOWN]
    )
    more = missing["num_gaps"] - min(len(gaps), GAPS_SHOWN)
    note = f'<p class="dim">{text_html(say("and {n} more", n=f"{more:,}"))}</p>' if more > 0 else ""
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


def health_html(say: Say, run: Json, missing: Json) -> str:
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


def _verdict(say: Say, run: Json, missing: Json) -> str:
    if run["shards_failed"]:
        text = say("{n} shards are damaged and are not asked: run `kiseki index --verify`.", n=run["shards_failed"])
        return message_html(text, "error")
    if missing["num_missing"] or missing["num_gaps"]:
        return message_html(
            say("Something is missing, so a text that is not found may have been trained on all the same."), "warning"
        )
    return message_html(say("Complete: every step up to the last indexed one is here, and nothing was left out."))


def _row(place: Place, say: Say, attempt: Json, rows: Mapping[int, int], last: int) -> str:
    y = TOP + ROW * rows[attempt["attempt"]]
    name = say("attempt {n}", n=attempt["attempt"])
    drawn = [f'<text x="{LEFT - 8}" y="{y + 17}" text-anchor="end">{text_html(name)}</text>']
    if attempt["parent_attempt"] in rows:
        x, parent_y = _x(attempt["resume_step"] + 1, last), TOP + ROW * rows[attempt["parent_attempt"]]
        drawn.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{parent_y + 24}" y2="{y}"/>')
    for first, end, counts in _parts(attempt):
        words = say("it counts") if counts else say("rolled back")
        label = say(
            "attempt {n}, steps {a}–{b}: {what}", n=attempt["attempt"], a=f"{first:,}", b=f"{end:,}", what=words
        )
        x0, x1 = _x(first, last), _x(end + 1, last)
        number = attempt["attempt"]
        href = place.to("steps", step=first, attempt=number, attempt_of=None if counts else number)
        drawn.append(
            f'<a data-go href="{attribute(href)}" '
            f'aria-label="{attribute(label)}"><rect class="bar{"" if counts else " dim"}" x="{x0:.1f}" y="{y}" '
            f'width="{max(2.0, x1 - x0):.1f}" height="24"><title>{text_html(label)}</title></rect></a>'
        )
    return "".join(drawn)


def _parts(attempt: Json) -> list[tuple[int, int, bool]]:
    """(first step, last step, whether it counts) of an attempt's parts."""
    first, last = attempt["first_step"], attempt["last_step"]
    if not attempt["canonical"]:
        return [(first, last, False)]
    end = last if attempt["canonical_last_step"] is None else min(last, attempt["canonical_last_step"])
    return [part for part in ((first, end, True), (end + 1, last, False)) if part[0] <= part[1]]


def _mark(place: Place, say: Say, gap: Json, row: int, last: int) -> str:
    label = say(
        "gap in step {n}, rank {r}: {why}", n=f"{gap['global_step']:,}", r=gap["dp_rank"], why=gap["reason"] or ""
    )
    x = (_x(gap["global_step"], last) + _x(gap["global_step"] + 1, last)) / 2
    return (
        f'<a data-go href="{attribute(place.to("steps", step=gap["global_step"]))}" aria-label="{attribute(label)}">'
        f'<circle class="mark" cx="{x:.1f}" cy="{TOP + ROW * row + 12}" r="5"><title>{text_html(label)}</title></circle></a>'
    )


def _table_row(say: Say, attempt: Json) -> str:
    if attempt["first_step"] is None:
        steps, counts, lost = say("none indexed"), "", ""
    else:
        parts = _parts(attempt)
        ranges = {
            kept: ", ".join(f"{first:,}–{end:,}" for first, end, counted in parts if counted is kept)
            for kept in (True, False)
        }
        steps, counts, lost = f"{attempt['first_step']:,}–{attempt['last_step']:,}", ranges[True], ranges[False]
    resumed = "–"
    if attempt["parent_attempt"] is not None:
        resumed = say("step {s} of attempt {n}", s=f"{attempt['resume_step']:,}", n=attempt["parent_attempt"])
    began = attempt["started"].replace("T", " ").partition(".")[0].removesuffix("Z")
    cells = (
        str(attempt["attempt"]), began, resumed, steps, counts or "–", lost or "–", f"{attempt['num_writers']:,}",
        str(attempt["export_format_version"]),
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{text_html(cell)}</td>" for cell in cells) + "</tr>"


def _step(place: Place, step: int) -> str:
    return place.link(place.to("steps", step=step), f"{step:,}")


def _x(step: float, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(1, last)
