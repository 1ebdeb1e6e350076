"""Writing so that a reader sees a whole file or folder, or none."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asvd_q.errors import ResourceError

__all__ = [
    "atomic_folder",
    "atomic_path",
    "folder_bytes",
    "make_folder",
    "require_disk",
    "scratch_folder",
    "sha256",
    "write_text",
]

_PARTIAL = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends without an error."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's content in one step."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A fresh temporary folder that replaces `folder` when the block ends without an error."""
    partial = folder.with_name(folder.name + _PARTIAL)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except OSError as error:
        raise ResourceError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Create a folder and see that it can be written to.

    Raises:
        ResourceError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / (".probe" + _PARTIAL)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ResourceError(
            f"cannot write to the output folder {folder}: {error.strerror or error}; "
            "choose another with `output`"
        ) from error


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder for what only the block needs; afterwards it is gone, error or not."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_disk(folder: Path, needed: int) -> None:
    """Raises ResourceError when fewer than `needed` bytes are free where `folder` lies."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder} has {free / 2**30:.1f} GiB free and {needed / 2**30:.1f} GiB are needed: "
            "free some space or choose another `output`"
        )


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """Hash of a file's content, as hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
