"""Make the exports that are kept for ever in tests/exports: small runs of formats 1, 2 and 3, each in four states.

    growing       the files of a killed writer: open files, a step that one writer lacks, torn tails
    sealed        two attempts of two writers, rolled files, a gap, late metrics
    compacted     the sealed run, compacted
    taken-down    the sealed run, after two takedowns

Formats 1 and 2 were made by kiseki 0.1.0, commit a230f23. Today's code cannot write them. Do not make them again,
unless the fixtures themselves are at fault. To do so, run this file in a clone of that commit:

    HERE=$PWD; git clone . ../kiseki-0.1.0 && cd ../kiseki-0.1.0 && git checkout a230f23
    PYTHONPATH=$PWD $HERE/.venv/bin/python $HERE/tests/support/make_kept_exports.py 1 2

Format 3 is made by today's code, until it is released. From then on it is kept as well:

    .venv/bin/python -m tests.support.make_kept_exports 3

Clocks, secrets and claims are fixed, so the same code writes the same bytes. The code that writes an export also
writes what is expected of it to tests/exports/expected.json.
"""

import hashlib
import itertools
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, RunInfo, Segment, SequenceAddress, StepRecord, StepStatus
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.takedown import Takedown, take_out
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep, as_gap, note_step
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch

EXPORTS = Path(__file__).resolve().parents[1] / "exports"
RUN_ID, LENGTH, VOCABULARY, END_OF_TEXT = "kept", 300, 257, 256
STATES = ("growing", "sealed", "compacted", "taken-down")
ROLL_BYTES = 8500
UNIX_S = 1_700_000_000.0
TEXTS = {
    (
        "青空文庫",
        "吾輩は猫である",
    ): "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめ"
    "した所でニャーニャー泣いていた事だけは記憶している。吾輩はここで始めて人間というものを見た。",
    ("青空文庫", "草枕"): "山路を登りながら、こう考えた。智に働けば角が立つ。情に棹させば流される。意地を通せば窮屈だ。"
    "とかくに人の世は住みにくい。住みにくさが高じると、安い所へ引き越したくなる。",
    ("web", "devil"): "HOPE, n. Desire and expectation rolled into one. Delicious Hope! when naught to man it left.",
}
"""Natsume Sōseki's and Ambrose Bierce's, all in the public domain. A token is a byte of UTF-8."""
TOKENS = {name: np.frombuffer(text.encode(), np.uint8).astype(np.int64) for name, text in TEXTS.items()}


def tokenizer_json() -> str:
    """A tokenizer whose token ids are the bytes of UTF-8."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    vocabulary = {names[byte]: byte for byte in range(256)} | {"<|endoftext|>": END_OF_TEXT}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
             "merges": []}  # fmt: skip
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    parts: dict[str, Any] = {"added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model}
    whole = {"version": "1.0", **nothing, **parts}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def packed(seed: int, length: int) -> tuple[npt.NDArray[np.int64], tuple[Segment, ...]]:
    """A row of two documents and a few end-of-text tokens that belong to none; a short row has one document."""
    names = list(TOKENS)
    tokens = np.full(length, END_OF_TEXT, np.int64)
    cuts = [0, length * (2 + seed % 3) // 6, length - 3] if length > 8 else [0, length]
    segments = []
    for number, (start, end) in enumerate(itertools.pairwise(cuts)):
        source, document_id = names[(seed + number) % len(names)]
        text = TOKENS[source, document_id]
        offset = seed * 9 % 60
        part = text[offset : offset + end - start]
        tokens[start : start + len(part)] = part
        segments.append(
            Segment(start=start, length=len(part), source=source, document_id=document_id, document_token_offset=offset)
        )
    return tokens, tuple(segments)


def microbatch(version: int, step: int, dp_rank: int, index: int, length: int) -> StagedMicrobatch:
    """One micro-batch; its content is a function of its place. The first of step 1 has two slots, all others one."""
    num_slots = 2 if step == 1 and index == 0 else 1
    seeds = [step * 12 + dp_rank * 6 + index * 2 + slot for slot in range(num_slots)]
    rows = [packed(seed, length) for seed in seeds]
    tokens = np.stack([row for row, _ in rows])
    labels = np.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:]
    for slot, (_, segments) in enumerate(rows):
        for segment in segments[:-1]:
            labels[slot, segment.start + segment.length - 1] = -100
    weight = np.array([[0x3F80 + slot, 0xBF00] for slot in range(num_slots)], np.uint16)  # bits of bfloat16
    tensors: dict[str, Any] = {
        "labels": labels,
        "loss_mask": (tokens != END_OF_TEXT).astype(np.float32),
        "position_ids": np.tile(np.arange(length), (num_slots, 1)),
    }
    more: dict[str, Any] = {}
    if version < 3:
        tensors["row_weight:bfloat16"] = weight
    else:
        tensors["row_weight"] = weight
        more = {"dtypes": {"row_weight": "bfloat16"}, **evidence_of(step, dp_rank, index, num_slots, rows)}
    lengths = np.arange(num_slots + 1, dtype=np.int32) * length
    return StagedMicrobatch(
        tokens=tokens,
        tensors=tensors,
        batch_tensors={"cu_seqlens": lengths} if index == 0 else {},
        segments=[segments for _, segments in rows],
        sample_index=seeds if step != 2 else None,
        loss=[2.5 - seed / 100 for seed in seeds] if step != 1 else None,
        tokens_key="input_ids",
        **more,
    )


def evidence_of(step: int, dp_rank: int, index: int, num_slots: int, rows: Sequence[Any]) -> dict[str, Any]:
    """What rows of format 3 say of themselves: mostly what the attempt's defaults say, in places something else."""
    from train_hooks.export_format.records import Evidence, Matched

    if step == 2 and dp_rank == 0:
        return {
            "evidence": Evidence.LOADER,
            "matched": Matched.COUNT,
            "tensor_evidence": {"labels": Evidence.FORWARD, "row_weight": Evidence.DECLARED},
        }
    if step == 1 and index == 1:
        return {"matched": Matched.SLICE, "relation": "dtype input_ids; [:, :-1]"}
    if step == 3:
        losses = [[1.5 + slot, *[None] * (len(rows[slot][1]) - 1)] for slot in range(num_slots)]
        return {"segment_losses": losses}
    return {}


def committed_step(version: int, step: int, dp_rank: int, *, shorter_rows: bool) -> CommittedStep:
    """Step 1 has two micro-batches, the others one. Step 4 was consumed without an update."""
    lengths = [LENGTH - 70 * (step - 1), 1] if shorter_rows else [LENGTH, LENGTH]
    lengths = lengths[: 2 if step == 1 else 1]
    values = {"loss": 2.5 / step, "grad_norm": float("inf") if step == 2 else 1.0}
    metrics = StepRecord(global_step=step, kind="metrics", unix_time_s=UNIX_S + step, values=values)
    made = (microbatch(version, step, dp_rank, index, length) for index, length in enumerate(lengths))
    return CommittedStep(
        kind=AckKind.STEP,
        global_step=step,
        status=StepStatus.SKIPPED_UPDATE if step == 4 else StepStatus.APPLIED,
        microbatches=tuple(made),
        records=(metrics,) if dp_rank == 0 else (),
        size_bytes=0,
    )


def note(version: int, step: int, dp_rank: int) -> CommittedStep:
    """Metrics of step 1 that came after `step`; in format 3 the losses of its rows as well."""
    late = StepRecord(global_step=1, kind="metrics", unix_time_s=UNIX_S + 9, values={"grad_norm": 0.5}, text=None)
    records = [late] if dp_rank == 0 else []
    if version == 3:
        from train_hooks.export_format.records import RowLoss
        from train_hooks.hook.export.committed_step import losses_record

        losses = [RowLoss(microbatch=0, slot=0, loss=3.25), RowLoss(microbatch=1, slot=0, loss=None, segments=(2.0,))]
        if dp_rank == 0:
            losses = [RowLoss(microbatch=0, slot=1, loss=3.0, segments=(3.5, float("nan")))]
        records.append(losses_record(1, losses[: 1 + (dp_rank == 0)], UNIX_S + 9))
    return note_step(step, tuple(records))


class Making:
    """One run in the making."""

    def __init__(self, version: int, run_dir: Path, *, shorter_rows: bool) -> None:
        self.version, self.run_dir, self.shorter_rows = version, run_dir, shorter_rows
        self.file_system, self.paths = OsFileSystem(), ExportPaths(run_dir)
        tokenizer = run_dir.parent / "tokenizer.json"
        tokenizer.write_text(tokenizer_json(), encoding="utf-8")
        spec = RunSpec(
            sequence_length=LENGTH, vocab_size=VOCABULARY, run_id=RUN_ID, tokenizer=tokenizer,
            config={"lr": 0.1, "名前": "保存"}, shorter_rows=shorter_rows,
        )  # fmt: skip
        self.run: RunInfo = open_or_create_run(self.file_system, run_dir, spec)
        tokenizer.unlink()
        if self.run.format_version != version:
            raise SystemExit(f"this code writes format {self.run.format_version}, not {version}; see {__file__}")

    def attempt(self, resume: ResumeToken | None = None) -> AttemptInfo:
        more: dict[str, Any] = {}
        if self.version == 3 and resume is None:
            from train_hooks.export_format.records import Evidence, EvidenceDefaults, Matched

            more["defaults"] = EvidenceDefaults(
                evidence=Evidence.FORWARD, tensor_evidence=Evidence.LOADER, matched=Matched.WHOLE
            )
        return claim_attempt(
            self.file_system, self.run_dir, self.run, num_writers=2, resume=resume, config={"seed": 7},
            clock=lambda: UNIX_S, **more,
        )  # fmt: skip

    def write(
        self, attempt: AttemptInfo, dp_rank: int, last_step: int, *, gap: int | None = None, close: bool = True
    ) -> None:
        """One writer's steps up to `last_step`, one append each, and a note behind the second."""
        secret, ticks = RunReader(self.run_dir).secret(), itertools.count()
        writer = RankWriter(
            self.file_system, self.paths.attempt_dir(attempt.attempt), self.run, attempt, dp_rank,
            roll_size_bytes=ROLL_BYTES, clock=lambda: UNIX_S + next(ticks) / 4,
        )  # fmt: skip
        builder = RowBuilder(self.run, attempt, dp_rank, secret)
        for step in range(attempt.resume_step + 1, last_step + 1):
            made = committed_step(self.version, step, dp_rank, shorter_rows=self.shorter_rows)
            frames = [as_gap(made, "the queue was full and the exporter was told to drop") if step == gap else made]
            late = note(self.version, step, dp_rank)
            frames += [late] if step == 2 and late.records else []
            writer.append([builder.frame(frame) for frame in frames])
        if close:
            writer.close()
        else:
            writer.abandon()

    def barrier(self, attempt: AttemptInfo, step: int) -> None:
        """Format 3 alone has barrier records."""
        if self.version == 3:
            from train_hooks.export_format.barriers import write_barrier

            write_barrier(self.file_system, self.paths, attempt, step, clock=lambda: UNIX_S + step)


def growing(version: int, run_dir: Path) -> None:
    """Writer 0 has steps 1 to 3, writer 1 steps 1 and 2, and each was killed in a write."""
    making = Making(version, run_dir, shorter_rows=version != 1)
    attempt = making.attempt()
    for dp_rank, last_step in ((0, 3), (1, 2)):
        making.write(attempt, dp_rank, last_step, close=False)
    making.barrier(attempt, 1)
    for dp_rank, last in ((0, ".acks"), (1, ".arrows")):
        path = max((run_dir / "export").rglob(f"rows-r{dp_rank:05d}-*{last}.inprogress"))
        data = path.read_bytes()
        path.write_bytes(data + data[-333:-200])


def sealed(version: int, run_dir: Path) -> None:
    """Attempt 1 has steps 1 to 3, and a gap in its last. Attempt 2 resumes from step 2 and has steps 3 and 4."""
    making = Making(version, run_dir, shorter_rows=version == 2)
    attempt = making.attempt()
    making.write(attempt, 0, 3)
    making.write(attempt, 1, 3, gap=3)
    making.barrier(attempt, 2)
    second = making.attempt(ResumeToken(run_id=RUN_ID, attempt=1, global_step=2))
    for dp_rank in (0, 1):
        making.write(second, dp_rank, 4)
    making.barrier(second, 4)


def compacted(version: int, run_dir: Path) -> None:
    """The sealed run, compacted."""
    sealed(version, run_dir)
    compact(RunReader(run_dir))


def taken_down(version: int, run_dir: Path) -> None:
    """The sealed run without one row and one span, and then without one more span of the same file."""
    sealed(version, run_dir)
    first, second = (SequenceAddress.parse(f"{RUN_ID}/a1/s1/r0/m0/q{slot}") for slot in (0, 1))
    take_out(RunReader(run_dir), Takedown(rows=frozenset({first})))
    take_out(RunReader(run_dir), Takedown(spans=frozenset({(second, 5, 20)})))


MAKERS: dict[str, Callable[[int, Path], None]] = dict(
    zip(STATES, (growing, sealed, compacted, taken_down), strict=True)
)


@contextmanager
def without_chance(seed: str) -> Iterator[None]:
    """Fixed secrets, claims, times, host and process. The secret of a fixture keeps nothing secret."""
    chance = random.Random(seed)
    with ExitStack() as patches:
        for name, value in (
            ("secrets.token_hex", lambda size: chance.randbytes(size).hex()),
            ("time.time", lambda: UNIX_S),
            ("socket.gethostname", lambda: "host"),
            ("train_hooks.export_format.writing.attempts.os.getpid", lambda: 1),
        ):
            patches.enter_context(mock.patch(name, value))
        yield


def expected_of(run_dir: Path) -> dict[str, Any]:
    """What readers of a later version must find: every believed row, and the exit code of `kiseki export verify`."""
    rows = {}
    for attempt in RunReader(run_dir).attempts():
        for frame in attempt.frames(0, 1 << 40):
            for row in attempt.rows(frame):
                rows[str(row.address)] = f"{hashlib.sha256(row.tokens.tobytes()).hexdigest()} {row.leaf.hex()}"
    committed = [len(attempt.committed_steps()) for attempt in RunReader(run_dir).attempts()]
    return {
        "exit_code": verify(run_dir).exit_code,
        "num_committed_steps": committed,
        "rows": dict(sorted(rows.items())),
    }


def make(version: int, state: str, directory: Path = EXPORTS) -> None:
    """Make one export anew, and note what is expected of it."""
    name = f"{version}-{state}"
    run_dir = directory / name
    if run_dir.exists():
        shutil.rmtree(run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    with without_chance(name):
        MAKERS[state](version, run_dir)
    path = directory / "expected.json"
    known = json.loads(path.read_bytes()) if path.exists() else {}
    known[name] = expected_of(run_dir)
    path.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Make the formats that the command line names."""
    versions = [int(argument) for argument in sys.argv[1:]]
    if not versions or not set(versions) <= {1, 2, 3}:
        raise SystemExit(f"expected the formats to make, 1, 2 or 3; {__doc__}")
    for version, state in itertools.product(versions, STATES):
        make(version, state)


if __name__ == "__main__":
    main()
