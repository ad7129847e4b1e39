"""Modules that have another name since 0.2.0 still answer to the old one, with a warning."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("train_hooks.documents_in_batches", "train_hooks.documents.in_batches", ["Indexed", "CarryingDocuments"]),
        ("search_api.async_client", "search_api.client", ["AsyncClient"]),
    ],
)
def test_a_moved_module_warns_and_works(old: str, new: str, names: list[str]) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=new):
        module = importlib.import_module(old)
    for name in names:
        assert getattr(module, name) is getattr(importlib.import_module(new), name)
