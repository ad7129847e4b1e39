"""The export as training data: what was consumed, again, bit for bit."""

from train_hooks.replay.replay import ReplayDataset, ReplayMicrobatch, ReplayMicrobatches, ReplayStep

__all__ = ["ReplayDataset", "ReplayMicrobatch", "ReplayMicrobatches", "ReplayStep"]
