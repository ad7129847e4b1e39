"""How a sequence is known, in words. The command line says them too, so nothing here is HTML."""

from ui.html.texts import Say

__all__ = ["evidence_words", "matched_words"]


def evidence_words(say: Say, evidence: str | None) -> str:
    """How the tokens of a sequence are known."""
    if evidence is None:
        return say("not recorded")
    words = {
        "forward": say("forward: the tokens were seen in the forward call"),
        "loader": say("loader: the tokens are what the data loader yielded"),
        "declared": say("declared: the trainer or an importer handed the tokens over"),
    }
    return words.get(evidence, evidence)


def matched_words(say: Say, matched: str | None, relation: str | None) -> str:
    """How a sequence was tied to a forward, and how what the forward got differs in form."""
    if matched is None:
        return say("not recorded")
    words = {
        "whole": say("whole: the forward got all of the tokens"),
        "slice": say("slice: the forward got a part of the tokens"),
        "count": say("count: what a forward got was not seen"),
    }
    found = words.get(matched, matched)
    return found if relation is None else f"{found} ({relation})"
