"""What has its final name is whole; what a failure or a kill leaves behind is gone the next time."""

import os
from pathlib import Path

import pytest

from indexer.durable import (
    BUILDING,
    built_directory,
    remove_unfinished_directories,
    replace_file,
    replace_link,
    replaced_file,
    sha256_of,
    sha256_of_file,
)


def test_a_directory_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "shards" / "one"
    with built_directory(final) as building:
        (building / "below").mkdir()
        (building / "below" / "file").write_bytes(b"1")
        assert not final.exists()
    assert (final / "below" / "file").read_bytes() == b"1"
    assert [entry.name for entry in final.parent.iterdir()] == ["one"]


def test_a_failed_build_has_no_final_name_and_the_next_begins_empty(tmp_path: Path) -> None:
    final = tmp_path / "one"

    def fail() -> None:
        with built_directory(final) as building:
            (building / "half").write_bytes(b"1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [entry.name for entry in tmp_path.iterdir()] == ["one" + BUILDING]
    with built_directory(final) as building:
        assert not any(building.iterdir())
    assert final.exists()


def test_unfinished_directories_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("one", "two" + BUILDING):
        (tmp_path / name).mkdir()
    remove_unfinished_directories(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    remove_unfinished_directories(tmp_path / "none")


def test_everything_is_synced_before_the_rename_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        calls.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def recorded_rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    with built_directory(tmp_path / "one") as building:
        (building / "file").write_bytes(b"1")
    assert calls == ["file", "one" + BUILDING, "rename", tmp_path.name]
    calls.clear()
    replace_file(tmp_path / "two", b"2")
    assert calls == ["two.tmp", "rename", tmp_path.name]
    calls.clear()
    replace_link(tmp_path / "three", Path("two"))
    assert calls == ["rename", tmp_path.name]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fail() -> None:
        with replaced_file(path) as file:
            file.write(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    (tmp_path / "file.tmp").write_bytes(b"of a killed process")
    replace_file(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name, encoding="utf-8")
        replace_link(tmp_path / "link", Path(name))
        assert (tmp_path / "link").read_text(encoding="utf-8") == name


def test_hashes_agree(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(b"abc") == sha256_of_file(tmp_path / "file")
    assert sha256_of(b"abc").startswith("ba7816bf")
