"""Stands in for FlashAttention, which nanotron imports everywhere: its causal attention within documents, in plain torch.

And for grouped_gemm, of its mixture of experts, which it imports and the tests do not use.
"""

import itertools
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def _attention(q: Tensor, kv: Tensor, ends: Tensor, *_: Any, **__: Any) -> Tensor:
    """As flash_attn_varlen_kvpacked_func, of all heads alike. q: [tokens, heads, dim]; kv: [tokens, 2, heads, dim]."""
    places = ends.tolist()
    parts = []
    for start, stop in itertools.pairwise(places):
        query, key, value = (part[start:stop].transpose(0, 1) for part in (q, kv[:, 0], kv[:, 1]))
        parts.append(nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(0, 1))
    return torch.cat(parts)


class _Rotary(nn.Module):
    """Is made, and not asked."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def _unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("this part of FlashAttention has no stand-in")


class _Module(ModuleType):
    """Has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unused


def without_flash_attention() -> None:
    """Put it in place, for as long as the process lives."""
    for name in (
        "flash_attn", "flash_attn.bert_padding", "flash_attn.flash_attn_interface", "flash_attn.layers",
        "flash_attn.layers.rotary", "flash_attn.modules", "flash_attn.modules.mha", "flash_attn.ops", "flash_attn.ops.triton",
        "flash_attn.ops.triton.layer_norm", "grouped_gemm", "grouped_gemm.ops",
    ):  # fmt: skip
        module: Any = _Module(name)
        module.__version__, module.__path__ = "2.7.0", []
        sys.modules[name] = module
    mha: Any = sys.modules["flash_attn.modules.mha"]
    mha.flash_attn_varlen_kvpacked_func = _attention
    rotary: Any = sys.modules["flash_attn.layers.rotary"]
    rotary.RotaryEmbedding = _Rotary
