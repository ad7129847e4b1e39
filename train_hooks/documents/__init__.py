"""Who was packed where: from a sequence's number in the data order to the documents in it.

A resolver is given to `ExportHook.attach(documents=…)`. The writer thread asks it for each row whose loader said a
`sample_index` and no `segments`, so that looking things up costs the training thread nothing (ADR 15).
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.records import Segment

__all__ = ["DocumentResolver", "PartResolver"]


class DocumentResolver(Protocol):
    """Finds the documents of a packed sequence. Called on the writer thread alone."""

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        """The documents in sequence `sample_index` of the data, in order.

        tokens: [sequence_length], what the model was fed. Raises InputError where the data there are other tokens:
        the export would name documents that the model did not see.
        """


@runtime_checkable
class PartResolver(DocumentResolver, Protocol):
    """Finds the documents of a part of a sample too, for loaders that cut samples and say the `sample_start` of each row."""

    def segments_of_part(
        self, sample_index: int, sample_start: int, tokens: npt.NDArray[np.integer[Any]]
    ) -> Sequence[Segment]:
        """The documents in the tokens of `sample_index` from its token `sample_start` on; otherwise as `segments`."""
