"""What the leaves of a query look for: terms of the text, or token ids, next to each other.

Patterns of terms are compiled for the engine (`compiler`), n-grams of tokens are found in the span index
(`indexer.trace.ngrams`). Both are looked for again in a hit, to highlight it (`snippets`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indexer.fulltext.terms import MAX_TERM_BYTES, terms_of
from indexer.search.query.records import Fuzzy, Ids, Ngram, Phrase, Prefix, Word
from train_hooks.export_format.errors import QuerySyntaxError

__all__ = ["MAX_PHRASE_TERMS", "MAX_SLOP_TERMS", "Gram", "Pattern", "PatternMaker"]

MAX_PHRASE_TERMS, MAX_SLOP_TERMS = 256, 6
Vocabulary = Callable[[str], Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """Terms next to each other, moved by `slop` at most. is_prefix: the last one may go on. distance: of a fuzzy term."""

    terms: tuple[str, ...]
    slop: int = 0
    is_prefix: bool = False
    distance: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether its terms stand in the index as they are, so that they have frequencies."""
        return not self.is_prefix and not self.distance


@dataclass(frozen=True, kw_only=True, slots=True)
class Gram:
    """Token ids next to each other."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternMaker:
    """Makes patterns for one query and one run.

    tokenize: the token sequences that a text may have, None where the run has no tokenizer.
    """

    query: str
    vocab_size: int
    tokenize: Vocabulary | None

    def patterns_of(self, leaf: Word | Phrase | Prefix | Fuzzy | Ids | Ngram) -> tuple[Pattern | Gram, ...]:
        """Alternatives: a segment with one of them has the leaf. Raises QuerySyntaxError for what cannot be looked for."""
        if isinstance(leaf, Ids):
            return (self._ids(leaf.token_ids, leaf.position),)
        if self.tokenize is None:
            raise self._wrong(
                "the run has no tokenizer, so it has no text; look for token ids: ids:[12 5 77]", leaf.position
            )
        if isinstance(leaf, Ngram):
            found = {tuple(ids) for ids in self.tokenize(leaf.text) if len(ids)}
            if not found:
                raise self._wrong("expected text with at least one token, found none", leaf.position)
            return tuple(self._ids(ids, leaf.position) for ids in sorted(found))
        terms = self._terms(leaf.text, leaf.position)
        if isinstance(leaf, Fuzzy):
            if len(terms) > 1 or len(terms[0]) <= leaf.distance:
                raise self._wrong(
                    f"expected one term of more than {leaf.distance} letters before ~, found {' '.join(terms)[:60]!r}",
                    leaf.position,
                )
            return (Pattern(terms=terms, distance=leaf.distance),)
        slop = leaf.slop if isinstance(leaf, Phrase) and len(terms) > 1 else 0
        if slop and len(terms) > MAX_SLOP_TERMS:  # the engine's work doubles with each
            raise self._wrong(f"expected at most {MAX_SLOP_TERMS} words before ~, found {len(terms)}", leaf.position)
        return (Pattern(terms=terms, slop=slop, is_prefix=isinstance(leaf, Prefix)),)

    def _terms(self, text: str, position: int) -> tuple[str, ...]:
        terms = tuple(terms_of(text))
        if not terms:
            raise self._wrong(
                'expected a letter or a digit, found none; ngram:"…" finds any text, punctuation too', position
            )
        self._check_length(len(terms), "terms", position)
        longest = max(len(term.encode("utf-8", "surrogatepass")) for term in terms)
        if longest > MAX_TERM_BYTES:
            raise self._wrong(
                f"expected terms of at most {MAX_TERM_BYTES} bytes, found one of {longest}: longer ones are not indexed; "
                'ngram:"…" finds any text',
                position,
            )
        return terms

    def _ids(self, ids: Sequence[int], position: int) -> Gram:
        self._check_length(len(ids), "tokens", position)
        if max(ids) >= self.vocab_size:
            raise self._wrong(f"expected token ids in [0, {self.vocab_size}), found {max(ids)}", position)
        return Gram(token_ids=tuple(ids))

    def _check_length(self, length: int, what: str, position: int) -> None:
        if length > MAX_PHRASE_TERMS:
            raise self._wrong(
                f"expected at most {MAX_PHRASE_TERMS} {what} next to each other, found {length}; `kiseki trace` finds texts "
                "of any length",
                position,
            )

    def _wrong(self, what: str, position: int) -> QuerySyntaxError:
        return QuerySyntaxError(what, self.query, position)
