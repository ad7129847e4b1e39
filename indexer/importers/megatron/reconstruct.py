"""A Megatron training's export, recomputed from the index caches of its data: what it must have consumed.

Marked as recomputed. Nobody observed it: batch-size ramp-up, skipped and repeated iterations are not in it; it is one attempt
from step 1 on. Rows have tokens and labels, no masks or positions. Samples go to ranks as the sampler `single` deals them:
of step s (from 1), micro-batch m and rank r of R, row q is sample

    (s - 1) · global batch + m · micro batch · R + r · micro batch + q
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from indexer.durable import sha256_of_file
from indexer.importers.megatron.samples import Samples, open_samples
from indexer.importers.new_export import vocab_size_of
from indexer.importers.recomputed import Recomputed, RecomputedRow, write_recomputed
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.origin import Origin, OriginKind
from train_hooks.export_format.writing.attempts import RunSpec

__all__ = ["MegatronSchedule", "reconstruct_megatron"]

WHAT = "Megatron's index caches"


@dataclass(frozen=True, kw_only=True, slots=True)
class MegatronSchedule:
    """Sequences of a global batch and of a micro-batch, data-parallel ranks, last step; None: all samples."""

    global_batch_size: int
    micro_batch_size: int = 1
    num_ranks: int = 1
    last_step: int | None = None

    def __post_init__(self) -> None:
        each = self.micro_batch_size * self.num_ranks
        if min(self.global_batch_size, self.micro_batch_size, self.num_ranks) < 1 or self.global_batch_size % each:
            raise InputError(
                f"expected a global batch that is a multiple of micro-batch times ranks, found {self.global_batch_size} for "
                f"{self.micro_batch_size} times {self.num_ranks}"
            )

    def samples(self, step: int, rank: int) -> Iterator[tuple[int, int, int]]:
        """(micro-batch, slot, sample) of a step on a rank."""
        each = self.micro_batch_size * self.num_ranks
        for microbatch in range(self.global_batch_size // each):
            first = (step - 1) * self.global_batch_size + microbatch * each + rank * self.micro_batch_size
            yield from ((microbatch, slot, first + slot) for slot in range(self.micro_batch_size))


def reconstruct_megatron(
    description: Path,
    run_dir: Path,
    schedule: MegatronSchedule,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    data_dir: Path | None = None,
    run_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recomputed:
    """Write the export of a past training into a run directory that holds none. `description` as `open_samples` has it.

    Raises InputError for caches that do not fit the data, or are too short; RunError where `run_dir` holds an export.
    """
    samples = open_samples(description, data_dir)
    most = len(samples) // schedule.global_batch_size
    num_steps = most if schedule.last_step is None else schedule.last_step
    if not 1 <= num_steps <= most:
        raise InputError(
            f"--last-step: expected 1 to {most}, the steps that {len(samples)} samples make, found {num_steps}"
        )
    sha256 = sha256_of_file(description)
    details = {
        "description": {"name": description.name, "sha256": sha256},
        "global_batch_size": schedule.global_batch_size,
        "micro_batch_size": schedule.micro_batch_size,
    }
    spec = RunSpec(
        sequence_length=samples.sequence_length,
        vocab_size=vocab_size_of(tokenizer, vocab_size),
        run_id=run_id,
        tokenizer=tokenizer,
        config=Origin(kind=OriginKind.RECOMPUTED, what=WHAT, details=details).to_config(),
    )
    return write_recomputed(
        run_dir,
        spec,
        lambda step, rank: _rows(samples, schedule, step, rank),
        num_ranks=schedule.num_ranks,
        num_steps=num_steps,
        progress=progress,
    )


def _rows(samples: Samples, schedule: MegatronSchedule, step: int, rank: int) -> Iterator[RecomputedRow]:
    for microbatch, slot, number in schedule.samples(step, rank):
        sample = samples.sample(number)
        yield RecomputedRow(
            where=sample.where,
            microbatch=microbatch,
            slot=slot,
            sample_index=number,
            tokens=sample.tokens[:-1],
            segments=sample.segments,
            tensors={"labels": sample.tokens[1:]},
        )
