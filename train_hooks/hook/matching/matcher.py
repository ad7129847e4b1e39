"""Finds out of which fetched rows a forward's tensors are: every forward is accounted for, or there is a reason why not.

1. *Which tensors are tokens?* Those under the loader's name for them. Without a name it is the first tensor of integers
   that is not another tensor of the same rows.
2. *What are they?* `match_tokens` compares them with the pending micro-batches. If nothing is equal, a micro-batch in whose
   memory they lie was edited in place: it is copied again and compared once more. What a forward of this step got already is
   a repetition (activation checkpointing, SAM), which consumes nothing.
3. *What else did the forward get?* `match_other_tensors` does this for labels, masks and positions. The same rows with other
   labels are no repetition, but consumed again.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.matching.counting import observe_whole
from train_hooks.hook.matching.match_other_tensors import (
    compare_other_tensors,
    consuming_step,
    is_tensor_of_rows,
    match_earlier_forwards,
    repeats_earlier_forward,
)
from train_hooks.hook.matching.match_tokens import RowMatch, match_rows, match_whole
from train_hooks.hook.matching.pending import PendingMicrobatches
from train_hooks.hook.matching.step_state import ForwardTensor, StepState, base_name, tensor_key
from train_hooks.hook.tensors.host_copies import BufferPool
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Array, as_array

__all__ = ["ForwardMatcher"]

_MIN_EDITED_COLUMNS = 4  # integers with fewer for each row are not taken for tokens that somebody edited


class TokensFound(NamedTuple):
    """What a tensor of tokens is. repeated: a forward of this step got it already."""

    match: RowMatch
    repeated: bool


class ForwardMatcher:
    """Matches what a forward got to the pending micro-batches. Call it under their lock.

    token_names: the loaders' names for tokens. accepts_length: whether the run can hold rows of a length. may_wait: whether
    copies that a device still makes may be waited for, as on the writer thread.
    """

    def __init__(
        self,
        pending: PendingMicrobatches,
        pool: BufferPool,
        scopes: TensorScopes,
        *,
        token_names: Collection[str],
        accepts_length: Callable[[int], bool],
    ) -> None:
        self.may_wait = False
        self._pending, self._pool, self._scopes = pending, pool, scopes
        self._token_names, self._accepts_length = token_names, accepts_length

    def match(self, tensors: Sequence[ForwardTensor], step: StepState) -> tuple[list[ConsumedRows], str | None]:
        """What a forward consumed, which is nothing for a repetition; and why its tokens are unknown, if they are."""
        integers = [each for each in tensors if each.can_hold_tokens]
        if not integers:
            return [], "a forward got no tensor of integers, so that its tokens cannot be seen"
        named = [each for each in integers if each.name is not None and base_name(each.name) in self._token_names]
        matched: list[ConsumedRows] = []
        match_tokens = self._match_named if named else self._match_first
        reason = match_tokens(named or integers, step, matched)
        if reason is None:
            self._match_further(integers, step, matched)
        for each in matched:
            compare_other_tensors(each, tensors, self._pool, alone=len(matched) == 1)
            if each.repeated and each.replaced and not repeats_earlier_forward(each, step):
                self._consume_again(each, step)
        consumed = [each for each in matched if not each.repeated]
        step.consumed.extend(consumed)
        for tokens in named or integers:
            step.known_tensors[tokens.key] = tokens.tensor
        return consumed, reason

    def _match_named(self, named: Sequence[ForwardTensor], step: StepState, matched: list[ConsumedRows]) -> str | None:
        """Each of these is tokens, by its name. Returns why one of them is unknown."""
        for each in named:
            found = self._find(each, step)
            if isinstance(found, str):
                return found
            matched.append(self._consume(found, each, step))
        return None

    def _match_first(
        self, integers: Sequence[ForwardTensor], step: StepState, matched: list[ConsumedRows]
    ) -> str | None:
        """Of tensors without a name, the first that is known is tokens. Returns why it, or one before it, is unknown.

        What comes before it must be another tensor of the same rows, unless its shape is unlike that of tokens: else it is
        tokens that somebody edited, and the one that is known is only labels.
        """
        at, found = self._first_known(integers, step)
        if isinstance(found, str):
            return found
        consumed = self._consumed_rows(found.match)
        shape = integers[at].tensor.shape
        for other in integers[:at]:
            same_sizes = [one == another for one, another in zip(other.tensor.shape, shape, strict=False)]
            like_tokens = other.tensor.ndim == len(shape) and (
                same_sizes[-1] or (same_sizes[0] and other.tensor.shape[-1] >= _MIN_EDITED_COLUMNS)
            )
            if like_tokens and not is_tensor_of_rows(consumed, other):
                return self._unknown_text(other, as_array(other.tensor))
        matched.append(self._consume(found, integers[at], step))
        return None

    def _first_known(self, integers: Sequence[ForwardTensor], step: StepState) -> tuple[int, TokensFound | str]:
        """The place of the first that is known, whole rows before truncated ones; else why the very first is not."""
        reason = ""
        for truncated in (False, True):
            for at, each in enumerate(integers):
                found = self._find(each, step, truncated=truncated)
                if not isinstance(found, str):
                    return at, found
                if truncated and at == 0:
                    reason = found
        return 0, reason

    def _match_further(self, integers: Sequence[ForwardTensor], step: StepState, matched: list[ConsumedRows]) -> None:
        """The forward may have got other micro-batches too. Integers that are none of them are the trainer's own affair."""
        for each in integers:
            if not any(is_tensor_of_rows(consumed, each) for consumed in matched):
                found = self._find(each, step, truncated=False)
                if not isinstance(found, str) and not found.repeated:
                    matched.append(self._consume(found, each, step))

    def _consumed_rows(self, match: RowMatch) -> ConsumedRows:
        consumed = ConsumedRows(match, self._pool, self._scopes, self._pending.lock)
        consumed.may_wait = self.may_wait
        return consumed

    def _consume(self, found: TokensFound, tokens: ForwardTensor, step: StepState) -> ConsumedRows:
        """Take the rows, unless this is a repetition."""
        match = found.match
        if not found.repeated:
            self._pending.consume(match, step)
        consumed = self._consumed_rows(match)
        consumed.repeated = found.repeated
        consumed.note_form(tokens.tensor)
        if found.repeated and match.whole is not None and match.whole.observation is None:
            match.whole.observation = observe_whole(match.whole, [tokens])  # in case that it was counted
        return consumed

    def _consume_again(self, consumed: ConsumedRows, step: StepState) -> None:
        """The same tokens with other labels: another micro-batch, and no repetition."""
        consumed.repeated = False
        for snapshot in consumed.match.snapshots:
            snapshot.num_holders += 1
            step.used.append(snapshot)

    def _find(self, tokens: ForwardTensor, step: StepState, *, truncated: bool = True) -> TokensFound | str:
        """What a tensor of tokens is, or why it cannot be recorded. truncated: whether it may be the first columns of rows."""
        array = as_array(tokens.tensor)
        found = self._find_equal(tokens, array, step, truncated=truncated)
        if found is None and self._pending.refresh_edited(tokens.tensor):
            found = self._find_equal(tokens, array, step, truncated=truncated)
        if found is None:
            return self._unknown_text(tokens, array)
        match = found.match
        if match.truncated and match.width is not None and not found.repeated and not self._accepts_length(match.width):
            first = match.snapshots[0]
            return (
                f"a forward got the first {match.width} of {first.sequence_length} tokens of its rows; with shorter_rows=True "
                "they are recorded as they were"
            )
        return found

    def _find_equal(
        self, tokens: ForwardTensor, array: Array, step: StepState, *, truncated: bool
    ) -> TokensFound | None:
        """The likeliest comes first. Rows that are free come before repetitions, since equal rows may be fetched twice."""
        for tensor in step.unkeyed_tensors:
            step.known_tensors[tensor_key(tensor)] = tensor
        step.unkeyed_tensors.clear()
        own = self._pending.newest_at(tokens.key[0])
        if tokens.key in step.known_tensors and own is None:  # the very tensor that a forward of this step got
            match = match_earlier_forwards(step, array)
            if match is not None:
                return TokensFound(match, repeated=True)
        for likely in (own, self._pending.next_expected()):
            if likely is not None and likely.tokens_ready and likely.consumed_by is None:
                match = match_whole(likely, array)
                if match is not None:
                    return TokensFound(match, repeated=False)
        comparable = self._pending.comparable()
        for snapshot in comparable:
            if snapshot.consumed_by is None and (match := match_whole(snapshot, array)) is not None:
                return TokensFound(match, repeated=False)
        match = match_rows(comparable, array, free=True, truncated=truncated)
        if match is not None:
            return TokensFound(match, repeated=False)
        match = match_earlier_forwards(step, array)
        if match is not None:
            return TokensFound(match, repeated=True)
        known = list(dict.fromkeys((*comparable, *step.used_up)))
        match = match_rows(known, array, free=False, truncated=truncated)
        if match is None or any(consuming_step(row) not in (0, step.serial) for row in match.rows):
            return None
        return TokensFound(match, repeated=False)

    def _unknown_text(self, tokens: ForwardTensor, array: Array) -> str:
        """Why a tensor of tokens is unknown, as exactly as can be told."""
        name = "tokens" if tokens.name is None else repr(tokens.name)
        if self._pending.was_set_aside(array):
            return (
                f"a forward got {name} of a micro-batch that was fetched too long before; more than "
                f"{self._pending.max_fetched_bytes} bytes were fetched after it: fetch fewer ahead, or raise "
                "ExporterOptions(max_fetched_bytes=…)"
            )
        nearest = self._pending.nearest_text(array)
        where = "" if nearest is None else f"; {nearest}"
        return f"a forward got {name} {list(array.shape)} that the wrapped loader did not yield{where}"
