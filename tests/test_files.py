"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from asvd_q.errors import ResourceError
from asvd_q.files import (
    atomic_folder,
    atomic_path,
    folder_bytes,
    make_folder,
    require_disk,
    scratch_folder,
    sha256,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "one")
    write_text(tmp_path / "a.json", "zwei …")
    assert (tmp_path / "a.json").read_bytes() == "zwei …".encode()
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def fail() -> None:
        with atomic_path(tmp_path / "a") as partial:
            partial.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot write .*missing/a: No such file"):
        write_text(tmp_path / "missing" / "a", "text")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for content in ("one", "two"):
        with atomic_folder(folder) as partial:
            (partial / content).write_text(content)
            assert partial != folder
    assert names(folder) == ["two"]
    assert names(tmp_path) == ["out"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with atomic_folder(folder) as partial:
        (partial / "kept").touch()

    def fail() -> None:
        with atomic_folder(folder) as partial:
            (partial / "half").touch()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert names(folder) == ["kept"]
    assert names(tmp_path) == ["out"]


def test_remains_of_a_killed_write_are_cleared(tmp_path: Path) -> None:
    remains = tmp_path / "out.partial"
    remains.mkdir()
    (remains / "stale").touch()
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "new").touch()
    assert names(tmp_path / "out") == ["new"]


def test_make_folder_creates_parents_and_leaves_no_probe(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"cannot write to the output folder .*file"):
        make_folder(tmp_path / "file" / "out")


def test_free_space(tmp_path: Path) -> None:
    require_disk(tmp_path, 1)
    with pytest.raises(ResourceError, match=r"has .* GiB free and 1048576.0 GiB are needed"):
        require_disk(tmp_path, 2**50)


def test_bytes_and_hash(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "sub" / "b").write_bytes(b"678")
    assert folder_bytes(tmp_path) == 8
    assert sha256(tmp_path / "a") == hashlib.sha256(b"12345").hexdigest()


def test_a_scratch_folder_starts_empty_and_does_not_stay(tmp_path: Path) -> None:
    left = tmp_path / "scratch" / "left"
    left.parent.mkdir()
    left.touch()

    def fail() -> None:
        with scratch_folder(tmp_path / "scratch") as folder:
            assert names(folder) == []
            (folder / "new").touch()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert names(tmp_path) == []
