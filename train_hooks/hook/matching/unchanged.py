"""The usual case, told fast: a forward gets the tensors of one micro-batch as they were fetched, and no others.

It takes a lookup by `id`, and one compiled pass over each tensor to see that nobody edited it. Whatever is not plainly
this case is left to `matcher`.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from train_hooks.hook.matching.pending import PendingMicrobatches
from train_hooks.hook.tensors.snapshots import Snapshot

__all__ = ["find_unchanged"]

_SCALARS = (type(None), bool, int, float, str)


def find_unchanged(
    pending: PendingMicrobatches, parameters: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Snapshot, Collection[str]] | None:
    """The micro-batch, and the names of its tensors that the forward got; None where this is not the usual case.

    parameters: names of the positional parameters of the model's forward.
    """
    by_tokens_id = pending.by_tokens_id
    numbers = None
    for value in (*args, *kwargs.values()):
        numbers = by_tokens_id.get(id(value))
        if numbers is not None:
            break
    if numbers is None:
        return None
    snapshot = pending.by_number[numbers[-1]]
    if snapshot.columns is not None or snapshot.consumed_by is not None or snapshot.documents_only:
        return None
    sources, names_by_id = snapshot.sources, snapshot.names_by_id
    seen: dict[str, None] = {}
    for value, parameter in itertools.zip_longest(args, parameters[: len(args)]) if args else ():
        name = names_by_id.get(id(value))
        if name is not None and (parameter not in sources or sources[parameter] is value):
            seen[name] = None
        elif not isinstance(value, _SCALARS):
            return None
    for key, value in kwargs.items():
        if sources.get(key) is value is not None:
            seen[key] = None
            continue
        if isinstance(value, _SCALARS):
            continue
        name = names_by_id.get(id(value))
        if name is None or key in sources:
            return None
        seen[name] = None
    if snapshot.tokens_name not in seen:
        return None
    for name in seen:
        if not sources[name].is_cpu:
            return None
    if not snapshot.is_unchanged(tuple(reversed(seen))):  # what was copied last is still in the cache
        return None
    return snapshot, seen
