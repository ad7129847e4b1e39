"""What a forward got, held against what was fetched, and against what the step's forwards got before."""

import threading
from collections.abc import Sequence

from train_hooks.export_format.records import Matched
from train_hooks.hook.matching.consumed import Consumed, in_other_form
from train_hooks.hook.matching.rows import Found, all_of, rows_of
from train_hooks.hook.matching.step_under_way import Fed, Step, last_part
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Array, Seen, Snapshot, as_array, equal_bits

__all__ = ["compare_others", "is_tensor_of", "repeats", "rows_seen_in", "seen_in", "use_of", "used_in"]


def used_in(step: Step, array: Array) -> Found | None:
    """`array` as what forwards of this step got already: these rows, of this width."""
    widths: dict[tuple[int, int], set[int | None]] = {}
    for part in step.consumed_parts:
        for snapshot, row in part.found.all_places():
            widths.setdefault((id(snapshot), row), set()).add(part.found.width)
    known = list(dict.fromkeys(step.touched))
    candidates = [found for snapshot in known if (found := all_of(snapshot, array)) is not None]
    rows = rows_of(known, array, free=False)
    for found in (*candidates, *([] if rows is None else [rows])):
        if all(found.width in widths.get((id(snapshot), row), ()) for snapshot, row in found.all_places()):
            return found
    return None


def repeats(part: Consumed, step: Step) -> bool:
    """Whether a forward of this step got these rows with these very tensors."""
    return any(
        set(part.found.all_places()) <= set(before.found.all_places())
        and all(_holds_equal(before, name, copy, part) for name, copy in part.replaced.items())
        for before in step.consumed_parts
    )


def _holds_equal(before: Consumed, name: str, copy: HostCopy, part: Consumed) -> bool:
    known = before.replaced.get(name)
    if known is None:
        return False
    rows = {place: number for number, place in enumerate(before.found.all_places())}
    tensor = known.tensor()
    if tensor.ndim and tensor.shape[0] == len(rows):
        tensor = tensor[[rows[place] for place in part.found.all_places()]]
    return equal_bits(tensor, copy.tensor())


def use_of(place: tuple[Snapshot, int]) -> int:
    snapshot, row = place
    return 0 if snapshot.uses is None else int(snapshot.uses[row])


def seen_in(snapshot: Snapshot, fed: Sequence[Fed]) -> Seen | None:
    """How a forward got this micro-batch, if it did."""
    for each in fed:
        if not each.is_tokens or (found := all_of(snapshot, as_array(each.tensor))) is None:
            continue
        part = Consumed(found, BufferPool(), TensorScopes({}), threading.RLock())
        part.tied(each.tensor)
        compare_others(part, fed, part.pool, alone=False)
        seen = [name for name in snapshot.copies if name != snapshot.name and name not in part.unseen]
        return Seen(part.matched or Matched.WHOLE, part.relation, seen)
    return None


def rows_seen_in(snapshot: Snapshot, fed: Sequence[Fed]) -> bool:
    """Whether a forward got some rows of this micro-batch that none was seen to get before."""
    for each in fed:
        found = rows_of([snapshot], as_array(each.tensor), free=False) if each.is_tokens else None
        if found is not None and not found.cut:
            rows = {row for _, row in found.places}
            if rows <= snapshot.rows_seen:
                continue
            snapshot.rows_seen |= rows
            if len(snapshot.rows_seen) == snapshot.num_slots:
                part = Consumed(found, BufferPool(), TensorScopes({}), threading.RLock())
                part.tied(each.tensor)
                snapshot.seen = Seen(part.matched or Matched.WHOLE, part.relation, ())
            return True
    return False


def is_tensor_of(part: Consumed, fed: Fed) -> bool:
    """Whether it is another tensor of the same rows, by its name or by what it holds, or their tokens in another form."""
    names = list(part.found.snapshots[0].copies)
    if fed.name is not None and last_part(fed.name) in {last_part(name) for name in names}:
        return True
    return any(_is_among(part, name, [fed], by_name=True, sliced=True) for name in names if part.is_of_rows(name))


def compare_others(part: Consumed, fed: Sequence[Fed], pool: BufferPool, *, alone: bool) -> None:
    """Labels, masks, positions: what of them the forward got, and what it got under their names instead."""
    first = part.found.snapshots[0]
    unseen = []
    known = {last_part(name) for name in first.copies}
    for name in first.copies:
        if name == first.name:
            continue
        source = first.sources.get(name)
        own = [each for each in fed if _is_named(each, name)] or [each for each in fed if each.tensor is source]
        by_name = bool(own)
        own = own or [each for each in fed if each.name is None or last_part(each.name) not in known]
        if part.is_of_rows(name) and _is_among(part, name, own, by_name=by_name):
            continue
        instead = part.in_shape_of(name, own[0].tensor) if by_name else None
        if instead is not None and alone and part.may_replace(name, instead):
            part.replaced[name] = copy_tensor(instead, pool)
        else:
            unseen.append(name)
    part.unseen = unseen


def _is_among(part: Consumed, name: str, fed: Sequence[Fed], *, by_name: bool, sliced: bool = False) -> bool:
    """Whether one of these is our tensor, in whatever form. Without its name, what holds but one value is not known."""
    ours, columns = part.value(name), part.found.snapshots[0].columns
    if not by_name and (not ours.size or bool((ours == ours.flat[0]).all())):
        return False
    forms = [ours] if columns is None or ours.ndim < 2 else [ours, ours[:, columns]]
    if part.found.width is not None and not part.found.cut and ours.ndim >= 2:
        forms.append(ours[:, : part.found.width])  # without its last column, as the tokens
    return any(in_other_form(form, as_array(each.tensor), sliced=sliced) for form in forms for each in fed)


def _is_named(fed: Fed, name: str) -> bool:
    return fed.name is not None and last_part(fed.name) == last_part(name)
