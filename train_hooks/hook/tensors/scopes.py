"""Which tensors have an item for each row, and which belong to the micro-batch as a whole.

Decided once for a name and a run: by declaration (`attach(microbatch_tensors=…)`), by what the parent attempt
decided, or by the first micro-batch that has it. A tensor is of rows where its first dimension is the number of rows,
unless it is cumulative lengths (`cu_seqlens`) that happen to be as many. A later micro-batch that does not fit is an
error, never another decision.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.errors import RowError
from train_hooks.export_format.records import TensorScope

__all__ = ["TensorScopes"]


class TensorScopes:
    """The decisions of one process. Asked on the writer thread, in the order of staging."""

    def __init__(self, known: Mapping[str, TensorScope]) -> None:
        self._scopes = dict(known)

    def is_whole(self, name: str, value: npt.NDArray[np.generic], num_slots: int, length: int) -> bool:
        """Whether a tensor belongs to its micro-batch of `num_slots` rows of `length` tokens as a whole.

        Raises RowError where it was a tensor of rows before, and does not have as many.
        """
        of_rows = value.ndim >= 1 and value.shape[0] == num_slots
        scope = self._scopes.get(name)
        if scope is None:
            whole = not of_rows or _are_cumulative_lengths(value, num_slots * length)
            scope = self._scopes[name] = TensorScope.MICROBATCH if whole else TensorScope.ROW
        if scope is TensorScope.ROW and not of_rows:
            raise RowError(
                f"tensor {name!r}: expected an item for each of {num_slots} rows, as the micro-batches before had, "
                f"found shape {list(value.shape)}; if it belongs to the micro-batch as a whole, attach with "
                f"microbatch_tensors=[{name!r}]"
            )
        return scope is TensorScope.MICROBATCH


def _are_cumulative_lengths(value: npt.NDArray[np.generic], num_tokens: int) -> bool:
    if value.ndim != 1 or value.dtype.kind not in "iu" or len(value) < 2:
        return False
    lengths = value.astype(np.int64)
    return bool(lengths[0] == 0 and lengths[-1] == num_tokens and (lengths[1:] >= lengths[:-1]).all())
