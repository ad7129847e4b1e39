"""`explain_step`: what distinguishes the sequences of a step from those of the steps before it."""

from indexer.explain.explain import explain_step
from indexer.explain.records import StepExplanation

__all__ = ["StepExplanation", "explain_step"]
