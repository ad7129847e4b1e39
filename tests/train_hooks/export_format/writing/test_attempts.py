"""Starting runs and claiming attempts: once, by one process, with a resume step that was committed."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.support.example_exports import LENGTH, VOCABULARY, begin_attempt, begin_run, write_export, write_steps
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.json_files import info_sha256
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, RunInfo
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run

FILES = OsFileSystem()


def spec(
    *,
    sequence_length: int = LENGTH,
    vocab_size: int = VOCABULARY,
    run_id: str | None = "example",
    tokenizer: Path | None = None,
) -> RunSpec:
    return RunSpec(
        sequence_length=sequence_length, vocab_size=vocab_size, run_id=run_id, tokenizer=tokenizer, config={"lr": 0.1}
    )


def claim(run_dir: Path, run: RunInfo, resume: ResumeToken | None = None) -> AttemptInfo:
    return claim_attempt(FILES, run_dir, run, num_writers=1, resume=resume, config={})


def start_and_claim(run_dir: Path) -> tuple[RunInfo, int]:
    run = begin_run(run_dir)
    return run, claim(run_dir, run).attempt


def test_a_run_is_made_once_and_opened_afterwards(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tok.json"
    tokenizer.write_text("{}")
    made = open_or_create_run(FILES, tmp_path / "new" / "run", spec(tokenizer=tokenizer))
    opened = open_or_create_run(FILES, tmp_path / "new" / "run", spec(tokenizer=tokenizer))
    reader = RunReader(tmp_path / "new" / "run")

    assert made == opened == reader.info
    assert reader.tokenizer_path().read_text() == "{}"
    assert len(reader.secret()) == 32
    assert reader.attempts() == []
    assert ExportPaths(tmp_path / "new" / "run").secret.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "new" / "run").iterdir()) == ["export"]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (spec(sequence_length=8), "sequence_length"),
        (spec(vocab_size=10), "vocab_size"),
        (spec(run_id="another"), "run_id"),
    ],
)
def test_another_training_may_not_use_the_directory(tmp_path: Path, other: RunSpec, name: str) -> None:
    begin_run(tmp_path)

    with pytest.raises(RunError, match=name):
        open_or_create_run(FILES, tmp_path, other)


def test_another_tokenizer_may_not_be_used(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("{}")
    second.write_text("{ }")
    open_or_create_run(FILES, tmp_path / "run", spec(tokenizer=first))

    with pytest.raises(RunError, match="tokenizer SHA-256"):
        open_or_create_run(FILES, tmp_path / "run", spec(tokenizer=second))
    with pytest.raises(InputError, match="found none"):
        open_or_create_run(FILES, tmp_path / "run", spec(tokenizer=tmp_path / "missing.json"))


@pytest.mark.parametrize(
    "wrong",
    [spec(sequence_length=0), spec(vocab_size=0), spec(vocab_size=1 << 33), spec(run_id="../x"), spec(run_id="")],
)
def test_a_spec_that_cannot_be(tmp_path: Path, wrong: RunSpec) -> None:
    if wrong.run_id == "":
        assert open_or_create_run(FILES, tmp_path, wrong).run_id
        return
    with pytest.raises(InputError):
        open_or_create_run(FILES, tmp_path, wrong)
    assert not (tmp_path / "export").exists()


def test_an_export_that_lost_its_run_json_is_not_overwritten(tmp_path: Path) -> None:
    begin_run(tmp_path)
    ExportPaths(tmp_path).run_json.unlink()

    with pytest.raises(RunError, match=r"has no run\.json"):
        begin_run(tmp_path)


def test_a_start_that_died_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "export-0123.inprogress" / "attempts").mkdir(parents=True)
    (tmp_path / "export").mkdir()

    assert begin_run(tmp_path).run_id == "example"


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(1, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (1 << 32, "uint32")]
)
def test_the_token_dtype_follows_the_vocabulary(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    assert open_or_create_run(FILES, tmp_path, spec(vocab_size=vocab_size)).token_dtype == dtype


def test_a_configuration_of_objects_is_kept_as_text(tmp_path: Path) -> None:
    config: dict[str, object] = {"data": tmp_path, "betas": (0.9, 0.95), "scale": float("inf")}
    run = open_or_create_run(FILES, tmp_path, RunSpec(sequence_length=4, vocab_size=9, config=config))

    assert run.config == {"data": str(tmp_path), "betas": [0.9, 0.95], "scale": "inf"}


def test_attempts_are_numbered_and_name_what_they_come_from(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    first = begin_attempt(tmp_path, run)
    write_steps(tmp_path, run, first, [1, 2, 3])
    second = claim(tmp_path, run, ResumeToken(run_id="example", attempt=1, global_step=2))

    assert (first.attempt, first.parent_attempt, first.resume_step, first.parent_sha256) == (1, None, 0, None)
    assert (second.attempt, second.parent_attempt, second.resume_step) == (2, 1, 2)
    assert second.parent_sha256 == info_sha256(first)
    assert first.claim != second.claim


def test_a_number_that_was_claimed_by_the_dead_is_not_used_again(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    ExportPaths(tmp_path).attempt_dir(1).mkdir()

    assert claim(tmp_path, run).attempt == 2


def test_processes_claim_different_attempts_of_one_run(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(start_and_claim, [tmp_path] * 16))

    assert sorted(number for _, number in results) == list(range(1, 17))
    assert len({run.created_unix_s for run, _ in results}) == 1


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (ResumeToken(run_id="other", attempt=1, global_step=1), "is of run other"),
        (ResumeToken(run_id="example", attempt=7, global_step=1), "no attempt 7"),
        (
            ResumeToken(run_id="example", attempt=1, global_step=6),
            "needs steps 1 to 6 of .* acknowledged steps 1 to 5",
        ),
        (
            ResumeToken(run_id="example", attempt=2, global_step=7),
            "needs steps 4 to 7 of .* acknowledged steps 4 to 6",
        ),
        (ResumeToken(run_id="example", attempt=1, global_step=-1), "at least 0"),
    ],
)
def test_a_resume_that_cannot_be(tmp_path: Path, token: ResumeToken, message: str) -> None:
    run = write_export(tmp_path).info

    with pytest.raises(InputError, match=message):
        claim(tmp_path, run, token)
    assert RunReader(tmp_path).attempt_numbers() == [1, 2]


def test_a_rollback_behind_the_parents_own_resume_step(tmp_path: Path) -> None:
    run = write_export(tmp_path).info

    assert claim(tmp_path, run, ResumeToken(run_id="example", attempt=2, global_step=1)).resume_step == 1
    assert claim(tmp_path, run, ResumeToken(run_id="example", attempt=2, global_step=0)).resume_step == 0


def test_no_writers_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_writers"):
        claim_attempt(FILES, tmp_path, begin_run(tmp_path), num_writers=0, resume=None, config={})


@pytest.mark.parametrize("state", [{}, {"run_id": "r", "attempt": "1", "global_step": 1}, {"run_id": 1}])
def test_a_state_that_is_none(state: dict[str, object]) -> None:
    with pytest.raises(InputError, match="state_dict"):
        ResumeToken.from_state(state)


def test_a_state_comes_back() -> None:
    state: dict[str, object] = {"run_id": "r", "attempt": 2, "global_step": 5, "more": []}

    assert ResumeToken.from_state(state) == ResumeToken(run_id="r", attempt=2, global_step=5)
