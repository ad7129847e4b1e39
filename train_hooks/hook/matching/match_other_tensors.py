"""Compares what a forward got with what was fetched, and with what the step's forwards got before."""

from collections.abc import Sequence

import numpy as np

from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.matching.match_tokens import FetchedRow, RowMatch, match_rows, match_whole
from train_hooks.hook.matching.step_state import ForwardTensor, StepState, base_name
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.hook.tensors.snapshots import Array, as_array, equal_bits

__all__ = [
    "compare_other_tensors",
    "consuming_step",
    "is_tensor_of_rows",
    "match_earlier_forwards",
    "repeats_earlier_forward",
]


def match_earlier_forwards(step: StepState, array: Array) -> RowMatch | None:
    """`array` as what forwards of this step got already: these rows, of this width."""
    widths: dict[tuple[int, int], set[int | None]] = {}
    for consumed in step.consumed:
        for snapshot, row in consumed.match.all_rows():
            widths.setdefault((id(snapshot), row), set()).add(consumed.match.width)
    used = list(dict.fromkeys(step.used))
    candidates = [match for snapshot in used if (match := match_whole(snapshot, array)) is not None]
    rows = match_rows(used, array, free=False)
    for match in (*candidates, *([] if rows is None else [rows])):
        if all(match.width in widths.get((id(snapshot), row), ()) for snapshot, row in match.all_rows()):
            return match
    return None


def repeats_earlier_forward(consumed: ConsumedRows, step: StepState) -> bool:
    """Whether a forward of this step got these rows with these very tensors."""
    return any(
        set(consumed.match.all_rows()) <= set(earlier.match.all_rows())
        and all(_holds_equal(earlier, name, copy, consumed) for name, copy in consumed.replaced.items())
        for earlier in step.consumed
    )


def _holds_equal(earlier: ConsumedRows, name: str, copy: HostCopy, consumed: ConsumedRows) -> bool:
    known = earlier.replaced.get(name)
    if known is None:
        return False
    row_numbers = {row: number for number, row in enumerate(earlier.match.all_rows())}
    tensor = known.tensor()
    if tensor.ndim and tensor.shape[0] == len(row_numbers):
        tensor = tensor[[row_numbers[row] for row in consumed.match.all_rows()]]
    return equal_bits(tensor, copy.tensor())


def consuming_step(row: FetchedRow) -> int:
    """The serial number of the step that consumed a fetched row; 0 where it is free."""
    snapshot, slot = row
    return 0 if snapshot.consumed_by is None else int(snapshot.consumed_by[slot])


def is_tensor_of_rows(consumed: ConsumedRows, tensor: ForwardTensor) -> bool:
    """Whether it is another tensor of the same rows, by its name or by its values, or their tokens in another form."""
    names = list(consumed.match.snapshots[0].copies)
    if tensor.name is not None and base_name(tensor.name) in {base_name(name) for name in names}:
        return True
    return any(
        _is_among(consumed, name, [tensor], by_name=True, sliced=True) for name in names if consumed.is_comparable(name)
    )


def compare_other_tensors(
    consumed: ConsumedRows, tensors: Sequence[ForwardTensor], pool: BufferPool, *, alone: bool
) -> None:
    """Labels, masks, positions: note which of them the forward got, and copy what it got under their names instead.

    alone: whether the forward got nothing else that was fetched, so that what it got under a name is of these rows.
    """
    first = consumed.match.snapshots[0]
    unseen = []
    known = {base_name(name) for name in first.copies}
    for name in first.copies:
        if name == first.tokens_name:
            continue
        source = first.sources.get(name)
        of_name = [each for each in tensors if _has_name(each, name)]
        of_name = of_name or [each for each in tensors if each.tensor is source]
        by_name = bool(of_name)
        likely = of_name or [each for each in tensors if each.name is None or base_name(each.name) not in known]
        if consumed.is_comparable(name) and _is_among(consumed, name, likely, by_name=by_name):
            continue
        instead = consumed.unflattened(name, of_name[0].tensor) if by_name else None
        if instead is not None and alone and consumed.may_replace(name, instead):
            consumed.replaced[name] = copy_tensor(instead, pool)
        else:
            unseen.append(name)
    consumed.unseen = unseen


def _is_among(
    consumed: ConsumedRows, name: str, tensors: Sequence[ForwardTensor], *, by_name: bool, sliced: bool = False
) -> bool:
    """Whether one of these is the loader's tensor of this name, in whatever form.

    A tensor that has one value everywhere is told by its name alone.
    """
    ours, columns = consumed.loader_value(name), consumed.match.snapshots[0].columns
    if not by_name and (not ours.size or bool((ours == ours.flat[0]).all())):
        return False
    forms = [ours] if columns is None or ours.ndim < 2 else [ours, ours[:, columns]]
    if consumed.match.width is not None and not consumed.match.truncated and ours.ndim >= 2:
        forms.append(ours[:, : consumed.match.width])  # without its last column, as the tokens
    return any(_equal_in_any_form(form, as_array(each.tensor), sliced=sliced) for form in forms for each in tensors)


def _has_name(tensor: ForwardTensor, name: str) -> bool:
    return tensor.name is not None and base_name(tensor.name) == base_name(name)


def _equal_in_any_form(ours: Array, theirs: Array, *, sliced: bool = False) -> bool:
    """Whether a forward got `ours` as `theirs`: in another shape or integer dtype.

    sliced: or without its first or last column.
    """
    if theirs.size == ours.size:
        return _same_numbers(ours, theirs.reshape(ours.shape))
    if sliced and ours.ndim >= 2 and theirs.ndim == ours.ndim and theirs.shape[1] == ours.shape[1] - 1:
        return theirs.shape[0] == ours.shape[0] and (
            _same_numbers(ours[:, :-1], theirs) or _same_numbers(ours[:, 1:], theirs)
        )
    return False


def _same_numbers(ours: Array, theirs: Array) -> bool:
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == theirs.dtype:
        return ours.tobytes() == theirs.tobytes()
    return ours.dtype.kind in "iu" and theirs.dtype.kind in "iu" and bool(np.array_equal(ours, theirs))
