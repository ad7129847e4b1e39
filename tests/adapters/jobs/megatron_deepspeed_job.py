"""A rank of Megatron-DeepSpeed's own pretrain_gpt.py, on a CPU: its arguments, data, model, loop, engine, checkpoints.

Stands in for what is not there: torchvision (imported for vision models), deepspeed's compression (imported, not called),
which newer versions no longer have. Adapted: the attention that is not fused, which today's torch and deepspeed left
behind, and the one gathering that gloo does not do. For fp16 the accelerator says that it has it, whatever the CPU.
"""

import os
import sys
from types import ModuleType
from typing import Any

import torch
import transformers  # noqa: F401  looks for torchvision, so it comes first
from torch import Tensor, nn

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.texts import EOD, LENGTH, SOURCES
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    SAVE_EVERY,
    STEPS,
    WORKERS,
    kill_at,
    overflow_at,
    rank,
    run_dir,
)

RUN = run_dir()  # sys.argv is Megatron's later
PIPELINE, TENSOR, ULYSSES = (int(os.environ.get(name, "1")) for name in ("PIPELINE", "TENSOR", "ULYSSES"))
ENGINE = os.environ.get("ENGINE") == "pipeline"
CURRICULUM = "CURRICULUM" in os.environ
OLDER_CURRICULUM = "OLDER_CURRICULUM" in os.environ  # it cuts the sequences in the model
LOG_EVERY = int(os.environ.get("LOG_EVERY", "1"))
BATCH = ACCUMULATION * MICRO_BATCH * 2 // (PIPELINE * TENSOR * ULYSSES)


def stand_in(name: str, **attributes: Any) -> ModuleType:
    """A module that is imported and not used."""
    module = sys.modules[name] = ModuleType(name)
    module.__dict__.update(attributes)
    return module


class Tap(nn.Module):
    """Where the log listens, if no module gets all of it."""

    def forward(self, **tensors: Tensor) -> None:
        """Nothing."""


def arguments() -> list[Any]:
    """Of pretrain_gpt.py."""
    blend = [each for source in SOURCES for each in ("1", RUN.parent / "data" / source)]
    checkpoints = RUN / "checkpoints"
    return [
        "--tensor-model-parallel-size", TENSOR, "--pipeline-model-parallel-size", PIPELINE,
        "--ds-sequence-parallel-size", ULYSSES, "--num-layers", 2, "--hidden-size", 32, "--num-attention-heads", 2,
        "--seq-length", LENGTH, "--max-position-embeddings", LENGTH, "--micro-batch-size", MICRO_BATCH,
        "--global-batch-size", BATCH, "--train-iters", STEPS, "--lr", "1e-3", "--log-interval", LOG_EVERY, "--eval-iters", 1,
        "--eval-interval", SAVE_EVERY, "--data-path", *blend, "--data-impl", "mmap", "--split", "90,10,0",
        "--data-cache-path", RUN.parent / "cache", "--tokenizer-type", "NullTokenizer", "--vocab-size", EOD,
        "--save-interval", SAVE_EVERY, "--save", checkpoints, "--load", checkpoints, "--num-workers", WORKERS,
        "--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion", "--distributed-backend", "gloo",
        "--deepspeed", "--deepspeed_config", RUN.parent / "deepspeed.json", "--zero-stage", 1,
        "--return-data-index", *([] if ENGINE else ["--no-pipeline-parallel"]),
        *(["--data-efficiency-curriculum-learning"] if CURRICULUM else []), *(["--fp16"] if overflow_at() else []),
    ]  # fmt: skip


def logged(model: nn.Module, step: Any) -> nn.Module:
    """Each stage of a pipeline writes down what it is given: the first the tokens, the last the labels."""
    if OLDER_CURRICULUM and not ENGINE:
        log_behind_the_cut(model, step)
        return model
    if not ENGINE:
        ConsumedLog(model, RUN / "log", rank(), step, kill_at=kill_at(), weights=bool(overflow_at()))
        model.register_forward_hook(
            lambda _, __, out: (out[0] * 1e36, *out[1:]) if step() + 1 == overflow_at() else out
        )
        return model
    if PIPELINE == 1:
        log_at_both_ends(model, step)
        return model
    tap, kill = Tap(), kill_at()
    last = rank() == PIPELINE - 1 and PIPELINE > 1
    # the second micro-batch will not reach the last stage when the first stage is killed in it
    ConsumedLog(tap, RUN / "log", rank(), step, kill_at=(kill[0], 0) if kill and last else kill)
    if last:
        pipe: Any = model
        loss = pipe.loss_fn
        pipe.loss_fn = lambda output, labels: (tap(labels=labels[0]), loss(output, labels))[1]
    else:
        first: Any = next(module for module in model.modules() if type(module).__name__ == "EmbeddingPipe")
        first.register_forward_pre_hook(
            lambda _, inputs: tap(input_ids=inputs[0][0], position_ids=inputs[0][1]), prepend=True
        )
    return model


def log_at_both_ends(model: Any, step: Any) -> None:
    """What the embedding of the only stage is given, and what the output is compared with."""
    tap, given, compare = Tap(), dict[str, Tensor](), model.loss_fn
    ConsumedLog(tap, RUN / "log", rank(), step, kill_at=kill_at())
    embedding: Any = next(module for module in model.modules() if type(module).__name__ == "EmbeddingPipe")
    embedding.register_forward_pre_hook(lambda _, inputs: given.update(input_ids=inputs[0][0]), prepend=True)
    model.loss_fn = lambda output, labels: (tap(**given, labels=labels[0]), compare(output, labels))[1]


def log_behind_the_cut(model: Any, step: Any) -> None:
    """What the language model inside is given, and what its output is compared with."""
    from megatron.model import gpt_model

    tap, given = Tap(), dict[str, Tensor]()
    ConsumedLog(tap, RUN / "log", rank(), step, kill_at=kill_at())
    model.language_model.register_forward_pre_hook(
        lambda _, inputs: given.update(input_ids=inputs[0], position_ids=inputs[1]), prepend=True
    )
    process = gpt_model.post_language_model_processing

    def processed(output: Tensor, labels: Tensor, *more: Any) -> Any:
        if model.training:
            tap(**given, labels=labels)
        return process(output, labels, *more)

    gpt_model.post_language_model_processing = processed


def unfused_attention() -> None:
    """For today's torch and deepspeed: its tensors made contiguous, and, with Ulysses, heads apart and the mask passed on."""
    from deepspeed.sequence.layer import DistributedAttention
    from megatron.model.transformer import CoreAttention

    attend, distribute = CoreAttention.forward, DistributedAttention.forward

    def attended(self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Any:
        context = attend(self, query.contiguous(), key.contiguous(), value.contiguous(), mask)
        return context if ULYSSES == 1 else context.unflatten(-1, (-1, self.hidden_size_per_attention_head))

    CoreAttention.forward = attended
    DistributedAttention.forward = lambda self, query, key, value, mask: distribute(
        self, query, key, value, 1, None, mask
    ).flatten(2)


def gathered_flat() -> None:
    """Its loss is gathered from one dimension into two, which NCCL does and gloo refuses."""
    collectives: Any = torch.distributed
    gather = collectives.all_gather_into_tensor
    collectives.all_gather_into_tensor = lambda output_tensor, input_tensor, **more: gather(
        output_tensor.view(-1), input_tensor.view(-1), **more
    )


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    stand_in(
        "torchvision",
        transforms=stand_in("torchvision.transforms"),
        datasets=stand_in("torchvision.datasets", VisionDataset=object),
    )
    try:
        import deepspeed.compression.compress  # noqa: F401
    except ImportError:
        stand_in("deepspeed.compression.compress", init_compression=None, redundancy_clean=None)
    sys.path.append(os.environ["KISEKI_MEGATRON_DEEPSPEED"])  # last: it has a package named tests too
    import pretrain_gpt
    from deepspeed.accelerator import get_accelerator
    from megatron import get_args
    from megatron.core.enums import ModelType

    from train_hooks.adapters.megatron_deepspeed import MegatronDeepSpeedExport

    unfused_attention()
    gathered_flat()
    if overflow_at():
        get_accelerator().is_fp16_supported = lambda: True

    def model_provider(*given: Any, **more: Any) -> nn.Module:
        if ENGINE:  # under a curriculum, its loop reads this before anybody has set it
            get_args().curriculum_seqlen = LENGTH
        return logged(pretrain_gpt.model_provider(*given, **more), lambda: get_args().curr_iteration)

    sys.argv[1:] = map(str, arguments())
    export = MegatronDeepSpeedExport(RUN, get_args, config={"trainer": "megatron-deepspeed"})
    pretrain_gpt.pretrain(
        export.datasets(pretrain_gpt.train_valid_test_datasets_provider),
        export.model(model_provider),
        ModelType.encoder_or_decoder,
        export.forward_step(pretrain_gpt.forward_step),
        data_post_process=export.data_post_process(pretrain_gpt.data_post_process)
        if "UNWATCHED" not in os.environ
        else pretrain_gpt.data_post_process,
    )
    export.close()
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
