"""What adapters have in common, without any framework."""

import ast
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train_hooks.hook.toy import Toy, attach, exported_ids, microbatch, same, train_step
from train_hooks import Segment
from train_hooks.adapters.versions import require_version
from train_hooks.documents.in_batches import CarryingDocuments, Indexed, SegmentsOfSlots
from train_hooks.export_format.errors import InputError

ADAPTERS = Path(__file__).parents[3] / "train_hooks" / "adapters"
OWN = {
    "hf": {"transformers"},
    "accelerate": {"accelerate"},
    "composer": {"composer"},
    "lightning": {"lightning"},
    "llm_foundry": {"llmfoundry"},
    "deepspeed": {"deepspeed"},
    "llm_recipes": {"llama_recipes"},
    "megatron": {"megatron"},
    "megatron_bridge": {"megatron"},
    "megatron_deepspeed": {"megatron"},  # what Megatron-DeepSpeed calls its own package
    "nanotron": {"nanotron"},
    "nemo": {"lightning", "megatron", "nemo"},
    "olmo_core": {"olmo_core"},
    "torchtitan": {"torchtitan"},
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_a_framework_is_imported_in_its_own_adapter_alone() -> None:
    allowed = {"torch", "numpy", "train_hooks", *sys.stdlib_module_names}
    for path in ADAPTERS.glob("*.py"):
        own = OWN.get(path.stem, set())
        assert own <= imports_of(path), path
        assert imports_of(path) <= allowed | own, path
    frameworks = set().union(*OWN.values())
    for path in ADAPTERS.parents[1].glob("*/**/*.py"):
        if path.parts[len(ADAPTERS.parents[1].parts)] in ("train_hooks", "indexer", "search_api", "ui"):
            assert path.parent == ADAPTERS or not imports_of(path) & frameworks, path


def test_a_version_that_is_not_known_names_those_that_are() -> None:
    require_version("torch", "2.6", "99")
    with pytest.raises(InputError, match=r"expected torch>=1.0,<2.0, found 2\..*pip install 'torch>=1.0,<2.0'"):
        require_version("torch", "1.0", "2.0")
    with pytest.raises(InputError, match=r"expected torch>=98,<99, found 2"):
        require_version("torch", "98", "99")
    with pytest.raises(InputError, match=r"expected no-such-framework>=1,<2, found none"):
        require_version("no-such-framework", "1", "2")
    require_version("torch", "98", "99", found="98.1")
    with pytest.raises(InputError, match=r"expected torch>=2,<3, found 98\.1"):
        require_version("torch", "2", "3", found="98.1")  # what was imported, not what is installed


def stack(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A collate function that knows tensors alone."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def test_documents_pass_a_collate_function_that_does_not_know_them() -> None:
    segment = Segment(start=0, length=4, source="web", document_id="d", document_token_offset=0)
    items = Indexed([{"input_ids": torch.arange(4) + n, "segments": [segment] * n} for n in range(3)])
    carrying = pickle.loads(pickle.dumps(CarryingDocuments(stack)))

    batch = carrying([items[2], items[0]])

    assert torch.equal(batch["input_ids"], torch.tensor([[2, 3, 4, 5], [0, 1, 2, 3]]))
    assert batch["sample_index"] == [2, 0]
    assert isinstance(batch["segments"], SegmentsOfSlots) and list(batch["segments"]) == [[segment] * 2, []]
    assert len(items) == 3 and len(batch["segments"]) == 2
    assert set(carrying([{"input_ids": torch.arange(4)}])) == {"input_ids"}


def test_micro_batches_tagged_one_by_one_and_thrown_away(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path / "run")
    skipped, batch, unseen = microbatch(1), microbatch(2, documents=True), microbatch(3)
    assert hook.tag(skipped) is skipped
    hook.forget_fetched()
    shown = hook.tag(batch)
    assert set(shown) == {"input_ids", "labels"}
    train_step(model, [shown])
    hook.commit(1)
    hook.tag(unseen)
    hook.forget_fetched()
    hook.tag(skipped)
    hook.consume()
    hook.commit(2)
    assert hook.committed_step == 2
    hook.close()
    assert same(exported_ids(tmp_path / "run"), [batch["input_ids"], skipped["input_ids"]])
