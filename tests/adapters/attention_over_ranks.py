"""Stands in for Transformer Engine, where alone Megatron has attention over context-parallel ranks.

Megatron's own attention within one rank is given the keys and values of all of them, in the order of the sequence. Of 2n
parts of a sequence, rank r of n has parts r and 2n - 1 - r.
"""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gathered(torch.autograd.Function):
    """The whole of what each rank has two parts of, along the first dimension."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, own.contiguous(), group=group)
        halves = [part.chunk(2) for part in parts]
        return torch.cat([first for first, _ in halves] + [second for _, second in reversed(halves)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole, group=ctx.group)
        parts, rank = whole.chunk(2 * ctx.group.size()), ctx.group.rank()
        return torch.cat([parts[rank], parts[-1 - rank]]), None


def attention_over_ranks() -> None:
    """Put it in place."""
    from megatron.core import parallel_state
    from megatron.core.transformer.dot_product_attention import DotProductAttention as Attention

    make, attend = Attention.__init__, Attention.forward

    def made(self: Any, config: Any, *given: Any, **more: Any) -> None:
        alone = copy.copy(config)
        alone.context_parallel_size = 1
        make(self, alone, *given, **more)

    def attended(self: Any, query: Tensor, key: Tensor, value: Tensor, *given: Any, **more: Any) -> Any:
        group = parallel_state.get_context_parallel_group()
        key, value = (_Gathered.apply(each, group) for each in (key, value))  # type: ignore[no-untyped-call]
        return attend(self, query, key, value, *given, **more)

    Attention.__init__, Attention.forward = made, attended
