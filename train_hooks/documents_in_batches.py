"""Moved to `train_hooks.documents.in_batches` in 0.2.0; this name goes in 0.3.0."""

import warnings

from train_hooks.documents.in_batches import *  # noqa: F403

warnings.warn(
    "train_hooks.documents_in_batches is now train_hooks.documents.in_batches", DeprecationWarning, stacklevel=2
)
