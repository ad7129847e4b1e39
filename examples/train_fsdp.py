"""Pre-train a small GPT with FSDP2, and export every packed sequence that it consumes.

    torchrun --nproc_per_node 2 examples/train_fsdp.py --run-dir RUN_DIR --corpus examples/corpus

Also runs as plain `python examples/train_fsdp.py …` (one process), on GPUs where there are some, and on any number of
ranks. Start the same command again to go on from the newest complete checkpoint. Bit-exact on CPU: the same seed and
ranks give the same losses, with or without a stop in between. A global batch has ranks * micro-batch * accumulation
sequences; keep the product, and any number of ranks trains on the same global batches.

The option is `--run-dir`: torchrun takes `--run` for a beginning of its own `--run-path`. Bad input ends a rank with one
line and exit code 2; torchrun adds its own report, and itself exits with 1.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from checkpoints import (
    TrainerState,
    check_same,
    complete_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from documents import load_tokenizer, read_corpus, tokenize, train_tokenizer
from errors import InputError, one_line_errors
from gpt import GPT, GPTConfig
from inject import InjectedSequences, parse_injections
from job_log import ConsumedLog, Progress, full, mean_over_ranks, say
from packing import GlobalBatchSampler, PackedSequence, PackedSequences, collate, parse_mixture
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader, Dataset

from train_hooks import ExportHook


class ShardedGPT(GPT, FSDPModule):
    """The type of a GPT after `fully_shard`, which changes its class in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The command line."""

    run: Path
    corpus: Path
    tokenizer: Path | None
    vocab_size: int
    mixture: str | None
    steps: int
    sequence_length: int
    micro_batch: int
    accumulation: int
    num_workers: int
    layers: int
    width: int
    heads: int
    lr: float
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    checkpoint_every: int
    log_every: int
    resume: bool
    from_scratch: bool
    export: bool
    inject: str | None

    def as_json(self) -> dict[str, Any]:
        """The same with strings for paths, to be kept with the run."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


def parse_arguments() -> Settings:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description="Pre-train a small GPT with FSDP2 and export what it consumes.")
    add = parser.add_argument
    add("--run-dir", "--run", dest="run", type=Path, required=True, help="run directory; made if missing")
    add("--corpus", type=Path, required=True, help="directory of *.jsonl.gz documents")
    add("--tokenizer", type=Path, help="a tokenizer.json to use; default: train one on the corpus")
    add("--vocab-size", type=int, default=4096, help="size of a tokenizer that is trained (%(default)s)")
    add("--mixture", help="source=repeats per epoch,…; * is every other source")
    add("--steps", type=int, default=120, help="optimizer updates in all (%(default)s)")
    add("--sequence-length", type=int, default=256, help="tokens of a packed sequence (%(default)s)")
    add("--micro-batch", type=int, default=2, help="sequences of one forward on one rank (%(default)s)")
    add("--accumulation", type=int, default=2, help="forwards of one update on one rank (%(default)s)")
    add("--num-workers", type=int, default=0, help="data loader processes of a rank (%(default)s)")
    add("--layers", type=int, default=2, help="(%(default)s)")
    add("--width", type=int, default=192, help="(%(default)s)")
    add("--heads", type=int, default=3, help="(%(default)s)")
    add("--lr", type=float, default=4e-3, help="peak learning rate of the blocks (%(default)s)")
    add("--warmup", type=int, default=10, help="steps of linear warm-up (%(default)s)")
    add("--weight-decay", type=float, default=0.01, help="(%(default)s)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient (%(default)s)")
    add("--seed", type=int, default=1, help="decides initial weights and data order (%(default)s)")
    add("--checkpoint-every", type=int, default=30, help="steps between checkpoints (%(default)s)")
    add("--log-every", type=int, default=10, help="steps between progress lines (%(default)s)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="insist on a checkpoint; default: use one if there is one")
    start.add_argument("--from-scratch", action="store_true", help="refuse if the run has checkpoints")
    add("--no-export", dest="export", action="store_false", help="train without the hook, to measure its cost")
    add("--inject", help="spoil half of a step's sequences, to practise on: garbage@step or repeat@step,…")
    settings = Settings(**vars(parser.parse_args()))
    for name in ("steps", "sequence_length", "micro_batch", "accumulation", "layers", "heads", "checkpoint_every"):
        if getattr(settings, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: must be 1 or more")
    for name in ("num_workers", "warmup", "seed"):
        if getattr(settings, name) < 0:
            raise InputError(f"--{name}: must be 0 or more".replace("_", "-"))
    if settings.width % (2 * settings.heads):
        raise InputError(f"--width {settings.width}: must be a multiple of 2 * --heads = {2 * settings.heads}")
    return settings


@dataclass(kw_only=True, slots=True)
class Job:
    """What one rank trains, from which step on."""

    model: ShardedGPT
    optimizer: torch.optim.Optimizer
    loader: Iterable[dict[str, Any]]
    model_config: GPTConfig
    data_config: dict[str, Any]
    tokenizer: Path
    device: torch.device
    global_batch: int
    first_step: int
    next_sample: int
    resume: dict[str, Any] | None


def train(settings: Settings) -> None:
    """The whole job of one rank."""
    job = prepare(settings)
    if job is None:
        say(f"nothing to do: --steps {settings.steps} are done; give more to go on")
        return
    hook: ExportHook | None = None
    if settings.export:
        # EXPORT 1/4: attach to the root module, once it is sharded. A resumed job hands in what its checkpoint kept.
        hook = ExportHook.attach(
            job.model,
            settings.run,
            sequence_length=settings.sequence_length,
            vocab_size=job.model_config.vocab_size,
            tokenizer=job.tokenizer,
            config={"trainer": settings.as_json(), "model": asdict(job.model_config), "data": job.data_config},
            resume=job.resume,
        )
        # EXPORT 2/4: the same batches, without "segments".
        job.loader = hook.wrap(job.loader)
    run_steps(settings, job, hook)
    if hook:
        hook.close()
    dist.destroy_process_group()


def prepare(settings: Settings) -> Job | None:
    """Data, model and optimizer, as the newest checkpoint left them; None where all steps are done."""
    device = start_distributed(settings.seed)
    checkpoint = find_checkpoint(settings)
    state = read_state(checkpoint) if checkpoint else None
    first_step = state.step + 1 if state else 1
    next_sample = state.next_sample_index if state else 0
    global_batch = settings.micro_batch * settings.accumulation * dist.get_world_size()
    tokenizer = prepare_tokenizer(settings)
    sequences, data_config = build_data(
        settings, tokenizer, num_sequences=next_sample + global_batch * (settings.steps - first_step + 1)
    )
    model_config = GPTConfig(
        vocab_size=data_config["vocab_size"],
        sequence_length=settings.sequence_length,
        layers=settings.layers,
        width=settings.width,
        heads=settings.heads,
    )
    if state:
        check_same("model", state.model, asdict(model_config))
        check_same("data", state.data, data_config)
        say(f"resuming after step {state.step} from {checkpoint}")
    if first_step > settings.steps:
        return None

    training_data: Dataset[PackedSequence] = sequences
    if settings.inject:
        training_data = InjectedSequences(sequences, parse_injections(settings.inject), global_batch)
    model = shard(GPT(model_config).to(device))
    optimizer = build_optimizer(model, settings)
    if checkpoint:
        load_checkpoint(checkpoint, model, optimizer)
    return Job(
        model=model,
        optimizer=optimizer,
        loader=build_loader(settings, training_data, len(sequences), next_sample, device),
        model_config=model_config,
        data_config=data_config,
        tokenizer=tokenizer,
        device=device,
        global_batch=global_batch,
        first_step=first_step,
        next_sample=next_sample,
        resume=state.export if state else None,
    )


def run_steps(settings: Settings, job: Job, hook: ExportHook | None) -> None:
    """Forward, backward, update and commit, step by step; a checkpoint every so often."""
    model, optimizer, batches = job.model, job.optimizer, iter(job.loader)
    progress = Progress(settings.steps, settings.log_every, job.first_step)
    log = ConsumedLog.from_environment(model, resumed_from=job.first_step - 1)
    for step in range(job.first_step, settings.steps + 1):
        lr = set_learning_rate(optimizer, settings, step)
        loss = torch.zeros((), device=job.device)
        for microbatch in range(settings.accumulation):
            batch = next(batches)
            if log:
                log.step, log.microbatch = step, microbatch
            # Gradients are reduced over the ranks once a step, with the last micro-batch.
            model.set_requires_gradient_sync(microbatch == settings.accumulation - 1)
            part = model(batch["input_ids"].to(job.device), batch["labels"].to(job.device)) / settings.accumulation
            part.backward()
            loss += part.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        job.next_sample += job.global_batch

        metrics: dict[str, int | float] = {
            "loss": mean_over_ranks(loss),
            "lr": lr,
            "grad_norm": full(grad_norm).item(),
            "num_tokens": job.global_batch * settings.sequence_length,
        }
        if hook:
            # EXPORT 3/4: the step is over, and these are its numbers.
            hook.commit(step, metrics=metrics)
        progress.update(step, metrics)
        if step % settings.checkpoint_every == 0 or step == settings.steps:
            if hook:
                # EXPORT 4/4: wait for the rows, so that no checkpoint ever knows more than the export.
                hook.checkpoint_barrier(step)
            save_checkpoint(
                settings.run,
                model,
                optimizer,
                TrainerState(
                    step=step,
                    next_sample_index=job.next_sample,
                    model=asdict(job.model_config),
                    data=job.data_config,
                    export=hook.state_dict() if hook else None,
                ),
            )
    progress.close()


# ---- what it starts from ---------------------------------------------------------------------------------------------


def start_distributed(seed: int) -> torch.device:
    """Join the process group, and make everything after it a function of the seed."""
    use_gpu = torch.cuda.is_available()
    backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:  # plain `python`: a group of one needs no rendezvous
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    if use_gpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    return torch.device("cpu")


def find_checkpoint(settings: Settings) -> Path | None:
    """The newest complete checkpoint of the run, if there is one and it is wanted."""
    checkpoints = complete_checkpoints(settings.run)
    if checkpoints and settings.from_scratch:
        raise InputError(f"{settings.run}: has checkpoints; leave out --from-scratch or give a new --run-dir")
    if settings.resume and not checkpoints:
        raise InputError(f"{settings.run}: has no complete checkpoint; leave out --resume to start from step 1")
    return checkpoints[max(checkpoints)] if checkpoints else None


def prepare_tokenizer(settings: Settings) -> Path:
    """RUN_DIR/tokenizer.json: the given one, or one that rank 0 trains while the others wait. Kept on a restart."""
    file = settings.run / "tokenizer.json"
    fault: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            _write_tokenizer(settings, file)
        except InputError as error:
            fault = [str(error)]
    dist.broadcast_object_list(fault)  # also where the others wait; none may be left alone in a collective
    if fault[0]:
        raise InputError(fault[0])
    return file


def _write_tokenizer(settings: Settings, file: Path) -> None:
    settings.run.mkdir(parents=True, exist_ok=True)
    if settings.tokenizer:
        load_tokenizer(settings.tokenizer)  # find fault before anything is written
        if not file.exists():
            shutil.copyfile(settings.tokenizer, file)
        elif file.read_bytes() != settings.tokenizer.read_bytes():
            raise InputError(f"--tokenizer {settings.tokenizer}: the run has another, {file}; give a new --run-dir")
    elif not file.exists():
        train_tokenizer(read_corpus(settings.corpus), settings.vocab_size, file)


def build_data(settings: Settings, tokenizer_file: Path, num_sequences: int) -> tuple[PackedSequences, dict[str, Any]]:
    """The packed sequences of the run, and all that decides what they are."""
    tokenizer = load_tokenizer(tokenizer_file)
    corpus = tokenize(read_corpus(settings.corpus), tokenizer)
    mixture = parse_mixture(settings.mixture, corpus)
    sequences = PackedSequences(corpus, mixture, settings.sequence_length, settings.seed, num_sequences)
    say(
        f"corpus: {len(corpus.document_ids):,} documents, {len(corpus.tokens):,} tokens; repeats per epoch: "
        + ", ".join(f"{source}={weight:g}" for source, weight in mixture.items())
        + f"; epochs in this run: {sequences.num_epochs}"
    )
    return sequences, {
        "corpus_sha256": corpus.sha256(),
        "mixture": mixture,
        "seed": settings.seed,
        "vocab_size": tokenizer.get_vocab_size(),
    }


def shard(model: GPT) -> ShardedGPT:
    """FSDP2: parameters, gradients and optimizer state are split over the ranks, and gathered block by block."""
    for block in model.blocks:
        fully_shard(block)
    return cast(ShardedGPT, fully_shard(model))


def build_optimizer(model: GPT, settings: Settings) -> torch.optim.Optimizer:
    """AdamW, ten times as fast for the token tables at both ends as for the blocks.

    Most rows of a table get a gradient only once in a while, and a run of one minute cannot wait for them.
    """
    blocks = list(model.blocks.parameters())
    ends = [parameter for part in (model.embedding, model.convolution, model.head) for parameter in part.parameters()]
    groups = [{"params": blocks, "lr_factor": 1.0}, {"params": ends, "lr_factor": 10.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay)


def build_loader(
    settings: Settings, sequences: Dataset[PackedSequence], num_sequences: int, next_sample: int, device: torch.device
) -> DataLoader[PackedSequence]:
    """This rank's micro-batches from a sample index on."""
    return DataLoader(
        sequences,
        batch_sampler=GlobalBatchSampler(
            next_sample, num_sequences, settings.micro_batch, dist.get_rank(), dist.get_world_size()
        ),
        num_workers=settings.num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )


# ---- what happens every step -----------------------------------------------------------------------------------------


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    done = max(0.0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
    cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
    lr = settings.lr * min(1.0, step / max(1, settings.warmup)) * cosine
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr


def main() -> None:
    """Entry point."""
    with one_line_errors():
        train(parse_arguments())


if __name__ == "__main__":
    main()
