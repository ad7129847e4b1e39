"""Documents told apart where nobody names them: a resolver that says `identity unknown`.

    ExportHook.attach(…, documents=BoundaryDocuments(eos=7))

For loaders that hide what they pack. `kiseki export resolve` does the same for an export that is there already, and knows
cumulative lengths (`cu_seqlens`) as well.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.boundaries import segments_by_eos
from train_hooks.export_format.records import Segment

__all__ = ["BoundaryDocuments"]


class BoundaryDocuments:
    """A DocumentResolver by the token that ends documents."""

    def __init__(self, eos: int) -> None:
        self._eos = eos

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:  # noqa: ARG002
        """The documents in `tokens` [sequence_length], without names; whichever the sample is."""
        return segments_by_eos(tokens, self._eos)
