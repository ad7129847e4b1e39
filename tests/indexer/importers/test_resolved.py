"""Boundaries without identities: by separator and by lengths, against a loop; the copy is its original but for them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.build.update import update_index
from indexer.importers.resolved import Boundaries, resolve_export
from indexer.reader import IndexReader
from tests.support.example_exports import LENGTH, VOCABULARY, begin_attempt, begin_run, write_steps
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from tests.ui.test_cli import run_here
from train_hooks.export_format.boundaries import UNKNOWN_IDENTITY, segments_by_eos, segments_by_lengths
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.origin import origin_of
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec
from train_hooks.hook.export.staging import StagedMicrobatch


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 4))
def test_by_separator_against_a_loop(tokens: list[int], eos: int) -> None:
    pieces: list[list[int]] = [[]]
    for place, token in enumerate(tokens):
        pieces[-1].append(place)
        if token == eos:
            pieces.append([])
    wanted = [piece for piece in pieces if piece and [tokens[place] for place in piece] != [eos]]
    found = segments_by_eos(np.array(tokens, np.uint16), eos)
    assert [list(range(part.start, part.start + part.length)) for part in found] == wanted
    assert [part.document_token_offset for part in found] == [0 if piece[0] else -1 for piece in wanted]
    assert all((part.source, part.document_id) == (UNKNOWN_IDENTITY, "") for part in found)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 50), st.lists(st.just(-1), max_size=3))
def test_by_lengths_against_a_loop(lengths: list[int], num_tokens: int, padding: list[int]) -> None:
    owner = [number for number, length in enumerate(lengths) for _ in range(length)][:num_tokens]
    cumulative = np.array([*np.cumsum([0, *lengths]).tolist(), *padding], np.int32)
    found = segments_by_lengths(cumulative, num_tokens)
    assert [(part.start, part.length) for part in found] == [
        (owner.index(number), owner.count(number)) for number in dict.fromkeys(owner)
    ]
    assert all(part.document_token_offset == -1 for part in found)


def write_original(run_dir: Path) -> None:
    """Two attempts on two writers, the second one from step 3; one between them died at once; no documents in it."""
    run = begin_run(run_dir)
    write_steps(run_dir, run, begin_attempt(run_dir, run, num_writers=2), range(1, 6), roll_size_bytes=6000)
    RunReader(run_dir).paths.attempt_dir(2).mkdir()
    token = ResumeToken(run_id=run.run_id, attempt=1, global_step=3)
    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCABULARY, run_id="example", config={"lr": 0.1})
    rng = np.random.default_rng(3)
    steps = [
        MadeStep(
            microbatches={rank: [rng.integers(0, 9, (2, LENGTH)) for _ in range(2)] for rank in range(2)},
            metrics={"loss": 2.5},
        )
        for _ in range(3)
    ]
    make_attempt(run_dir, spec, steps, num_writers=2, resume=token)


def test_the_copy_is_the_original_but_for_boundaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_original(tmp_path / "run")
    code, out, err = run_here(
        capsys, monkeypatch, "export", "resolve", tmp_path / "run", tmp_path / "copy", "--eos", "4"
    )
    before, after = all_rows(tmp_path / "run"), all_rows(tmp_path / "copy")
    unnamed = [row for row in before if not row.segments]
    assert (
        code == 0 and f"{len(unnamed)} of {len(before)} sequences had no documents" in out and "copying frames" in err
    )
    assert len(unnamed) == 24 and len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert (old.address, old.status, old.loss, old.sample_index) == (
            new.address,
            new.status,
            new.loss,
            new.sample_index,
        )
        assert np.array_equal(old.tokens, new.tokens)
        wanted = old.segments or segments_by_eos(old.tokens, 4)
        assert new.segments == wanted
        for tensor, copied in zip(old.tensors, new.tensors, strict=True):
            values = [decode_tensor(item, row.tokens, row.segments) for item, row in ((tensor, old), (copied, new))]
            assert tensor.name == copied.name and values[0].tobytes() == values[1].tobytes()
    report = verify(tmp_path / "copy")
    original = verify(tmp_path / "run")
    assert report.exit_code == 0 and (report.num_rows, report.num_tokens) == (original.num_rows, original.num_tokens)
    old_run, new_run = RunReader(tmp_path / "run"), RunReader(tmp_path / "copy")
    for old_attempt, new_attempt in zip(old_run.attempts(), new_run.attempts(), strict=True):
        assert list(old_attempt.step_records()) == list(new_attempt.step_records())
        names = ("attempt", "parent_attempt", "resume_step", "num_writers", "config")
        assert [getattr(old_attempt.info, name) for name in names] == [
            getattr(new_attempt.info, name) for name in names
        ]
    assert "told apart afterwards, by token 4" in origin_of(new_run.info).what
    update_index(tmp_path / "copy")
    shares = IndexReader.open(tmp_path / "copy").sql(
        "SELECT count(*) AS n FROM segments WHERE source = 'identity unknown' AND document_id = ''"
    )
    assert shares[0]["n"] == sum(len(segments_by_eos(row.tokens, 4)) for row in unnamed)


@pytest.mark.parametrize("whole", [False, True])
def test_by_a_recorded_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Of each row, or of the micro-batch as one long sequence."""
    rng = np.random.default_rng(5)
    lengths = np.array([[0, 3, 9, LENGTH], [0, 5, LENGTH, LENGTH]], np.int32)
    flat = np.array([0, 3, LENGTH + 5, 2 * LENGTH], np.int32)
    original = StagedMicrobatch

    def staged(**fields: object) -> StagedMicrobatch:
        more = {"batch_tensors": {"cu": flat}} if whole else {"tensors": {"cu": lengths}}
        return original(**{**fields, **more})  # type: ignore[arg-type]

    monkeypatch.setattr("tests.support.export_maker.StagedMicrobatch", staged)
    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCABULARY, config={})
    make_attempt(tmp_path / "run", spec, [MadeStep(microbatches={0: [rng.integers(0, 9, (2, LENGTH))]})])
    done = resolve_export(RunReader(tmp_path / "run"), tmp_path / "copy", Boundaries(lengths="cu"))
    found = [[(part.start, part.length) for part in row.segments] for row in all_rows(tmp_path / "copy")]
    assert found == ([[(0, 3), (3, 13)], [(0, 5), (5, 11)]] if whole else [[(0, 3), (3, 6), (9, 7)], [(0, 5), (5, 11)]])
    assert done.num_segments == sum(map(len, found)) and verify(tmp_path / "copy").exit_code == 0
    with pytest.raises(InputError, match="expected a tensor 'lengths', found"):
        resolve_export(RunReader(tmp_path / "run"), tmp_path / "other", Boundaries(lengths="lengths"))
    with pytest.raises(RunError, match="holds an export already"):
        resolve_export(RunReader(tmp_path / "run"), tmp_path / "copy", Boundaries(eos=1))
    with pytest.raises(InputError, match="expected one of --eos and --cu-seqlens"):
        Boundaries()


def test_a_row_that_lost_tokens_cannot_be_copied(tmp_path: Path) -> None:
    kept = Path(__file__).parents[2] / "exports" / "3-taken-down"
    with pytest.raises(InputError, match="tokens of it were removed from the export"):
        resolve_export(RunReader(kept), tmp_path / "copy", Boundaries(eos=256))
    assert not (tmp_path / "copy").exists()
