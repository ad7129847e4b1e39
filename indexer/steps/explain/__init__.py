"""`explain_step`: what distinguishes the sequences of a step from those of the steps before it."""

from indexer.steps.explain.explain import explain_step
from indexer.steps.explain.records import StepExplanation

__all__ = ["StepExplanation", "explain_step"]
