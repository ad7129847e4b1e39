"""The JSON files: they come back, carry their own hash, and say what is wrong with them."""

import json
import math
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.example_exports import begin_attempt, begin_run
from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.json_files import (
    decode_document,
    encode_document,
    info_sha256,
    plain_json,
    read_attempt_info,
    read_run_info,
    write_once,
)
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.seals import read_seal

PATH = Path("x.json")
DOCUMENT = {"format": "f", "n": 1, "text": "日本 \n", "nested": {"a": [1.5, None, True]}}


def test_a_document_comes_back_and_is_plain_json() -> None:
    data = encode_document(DOCUMENT)

    assert {**DOCUMENT, "sha256": json.loads(data)["sha256"]} == json.loads(data) == decode_document(PATH, data)


@given(st.integers(0, len(encode_document(DOCUMENT)) * 8 - 1))
def test_each_flipped_bit_is_damage(bit: int) -> None:
    data = bytearray(encode_document(DOCUMENT))
    data[bit // 8] ^= 1 << bit % 8

    with pytest.raises(DamageError, match=r"x\.json"):
        decode_document(PATH, bytes(data))


@pytest.mark.parametrize("data", [b"", b"{}", b'"sha256": "', encode_document(DOCUMENT)[:-1], encode_document({})[1:]])
def test_other_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(DamageError):
        decode_document(PATH, data)


def test_configuration_becomes_plain_json() -> None:
    config = {
        "path": PurePosixPath("/data"), "lr": math.nan, "betas": (0.9, 0.95), 3: {"b", "a"}, "flag": True,
        "scalar": np.float32(0.5), "dtype": np.dtype("int64"), "none": None,
    }  # fmt: skip

    assert plain_json(config) == {
        "path": "/data", "lr": "nan", "betas": [0.9, 0.95], "3": ["a", "b"], "flag": True,
        "scalar": "0.5", "dtype": "int64", "none": None,
    }  # fmt: skip


def test_run_and_attempt_come_back_with_the_hash_of_their_file(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    paths, files = ExportPaths(tmp_path), OsFileSystem()

    assert read_run_info(files, paths) == run
    assert read_attempt_info(files, paths, 1, run) == attempt
    assert attempt.run_sha256 == info_sha256(run)
    paths.attempt_dir(2).mkdir()
    assert read_attempt_info(files, paths, 2, run) is None


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        read_run_info(OsFileSystem(), ExportPaths(tmp_path))


def test_a_run_json_of_something_else(tmp_path: Path) -> None:
    paths = ExportPaths(tmp_path)
    paths.export.mkdir()
    paths.run_json.write_text('{"trainer": "other"}')

    with pytest.raises(RunError, match="not of a kiseki export"):
        read_run_info(OsFileSystem(), paths)


def test_a_run_of_another_version(tmp_path: Path) -> None:
    paths = ExportPaths(tmp_path)
    paths.export.mkdir()
    paths.run_json.write_bytes(encode_document({"format": "kiseki-export", "format_version": 4}))

    with pytest.raises(
        RunError, match="expected export format version 1, 2 or 3, found 4; read it with a newer kiseki"
    ):
        read_run_info(OsFileSystem(), paths)


def test_keys_that_are_missing_are_damage(tmp_path: Path) -> None:
    paths = ExportPaths(tmp_path)
    paths.export.mkdir()
    paths.run_json.write_bytes(encode_document({"format": "kiseki-export", "format_version": 1}))

    with pytest.raises(DamageError, match="lacks config, created_unix_s"):
        read_run_info(OsFileSystem(), paths)


def test_another_document_is_no_seal() -> None:
    with pytest.raises(DamageError, match="kiseki-seal-v3"):
        read_seal(PATH, encode_document({"format": "kiseki-export"}))
    for version in (1, 3):
        with pytest.raises(DamageError, match="other keys"):
            read_seal(PATH, encode_document({"format": f"kiseki-seal-v{version}"}))


def test_a_file_is_written_once(tmp_path: Path) -> None:
    write_once(OsFileSystem(), tmp_path / "x", b"1", mode=0o600)

    assert (tmp_path / "x").read_bytes() == b"1"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
