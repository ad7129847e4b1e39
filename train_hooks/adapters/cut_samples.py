"""Rows that a trainer cuts out of samples behind its loader: which sample each row is of, and from which token on.

The function that cuts is called a second time, with the place of each token in the token's stead. So nothing is assumed of
how it cuts, which rows it drops, in which order it leaves them, or whether two of them share tokens; only that it does not
look at the tokens, and that a row is a stretch of one sample. Else it is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from train_hooks.export_format.errors import InputError

__all__ = ["cut_with_places"]


def cut_with_places(cut: Callable[[dict[str, Any]], dict[str, Any]], batch: Mapping[str, Any], tokens: str) -> Any:
    """`cut(batch)`, with `sample_index` and `sample_start` (int64 [rows] each) of the rows that it leaves.

    batch: has `tokens` [samples, length] and `sample_index` [samples]; where nothing is cut, it stays without a
    `sample_start`. Raises InputError for rows that are not stretches of samples.
    """
    whole, samples = batch[tokens], torch.as_tensor(batch["sample_index"])
    all_places = torch.arange(whole.numel(), device=whole.device).view_as(whole)
    places, result = cut({**batch, tokens: all_places})[tokens], cut(dict(batch))
    if torch.equal(places, all_places) and result[tokens] is whole:
        return {**result, "sample_index": samples}
    length = whole.shape[1]
    if not _are_stretches(places, length) or not torch.equal(whole.flatten()[places], result[tokens]):
        raise InputError(
            f"expected a function that leaves stretches of its samples as rows of {tokens!r}, found one that makes of "
            f"{list(whole.shape)} {list(result[tokens].shape)} otherwise; the export cannot say where such rows come from"
        )
    return {**result, "sample_index": samples[places[:, 0] // length], "sample_start": places[:, 0] % length}


def _are_stretches(places: Tensor, length: int) -> bool:
    """Whether each row is places of one sample, one after the other."""
    if places.ndim != 2 or not places.numel():
        return False
    follow = places[:, :1] + torch.arange(places.shape[1], device=places.device)
    return torch.equal(places, follow) and bool((places[:, 0] // length == places[:, -1] // length).all())
