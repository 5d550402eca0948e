# SPDX-License-Identifier: Apache-2.0
"""A hidden folder beside the output in which a job's files grow; finished ones outlive a kill.

The output appears at once when all is done: a file by one rename, a folder by one rename or, where there is one
already, by an exchange of the two. So a kill leaves the old output or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer.files import replace_file
from gossamer.headers import read_json

_STATE, _LOCK, _FILES = "job.json", "lock", "files"
_PIECE = 1 << 20  # bytes a write: with 32 MB at once ext4 of Linux 6.18 took up to five times as long
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD


class GrowingFile:
    """A new file, written at any places and in the background.

    ``write`` returns when the write before it is done; so its data must stay as they are until the next one returns.
    """

    # Pushing it to the disk meanwhile (fdatasync every 64 MB) was tried: 0.8 s instead of 0.45 s for 600 MB on ext4.
    def __init__(self, path: Path, background: ThreadPoolExecutor) -> None:
        self._file = path.open("wb", buffering=0)
        self._background = background
        self._writing: Future[None] | None = None

    def write(self, position: int, data: bytes | memoryview) -> None:
        self.settle()
        self._writing = self._background.submit(self._write, position, memoryview(data))

    def settle(self) -> None:
        """Waits until all is written. Raises what the background could not do."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        try:
            self.settle()
        finally:
            self._file.close()

    def _write(self, position: int, view: memoryview) -> None:
        while view:
            count = os.pwrite(self._file.fileno(), view[:_PIECE], position)
            view, position = view[count:], position + count


class Work:
    """The working folder of one job. ``state`` is what a job remembers, as plain JSON; ``save`` writes it down."""

    def __init__(self, target: Path, folder: Path, job: str) -> None:
        self._target, self._folder, self._job = target, folder, job
        self.files = folder / _FILES
        self._finishing: list[Future[None]] = []
        self._background = ThreadPoolExecutor(3, "gossamer-write")  # a write, and two files that are being finished
        self.state: dict[str, Any] = self._old_state()
        if not self.state:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self.state = {"job": job, "finished": {}}
            self.files.mkdir()
            self.save()

    def _old_state(self) -> dict[str, Any]:
        """What an interrupted run of the very same job has left; nothing otherwise."""
        try:
            _, state = read_json(self._folder / _STATE, "work", "a job")
        except (OSError, ValueError):
            return {}
        return state if state.get("job") == self._job and self.files.is_dir() else {}

    def save(self) -> None:
        replace_file(self._folder / _STATE, json.dumps(self.state).encode())

    def finished(self, name: str) -> Any:
        """What was to be remembered of a file that an earlier run has finished; None if it has not."""
        return self.state["finished"].get(name) if (self.files / name).is_file() else None

    @contextmanager
    def file(self, name: str, remember: dict[str, Any] | None = None) -> Iterator[GrowingFile]:
        """A file to write. After the block it is brought to the disk in the background, and then counts as finished.

        From then on only the background touches ``state``, until ``settle``.
        """
        partial = self._folder / f"partial{len(self._finishing)}"
        file = GrowingFile(partial, self._background)
        try:
            yield file
        finally:
            file.close()
        before = self._finishing[-1:]
        self._finishing.append(self._background.submit(self._finish, partial, name, remember or {}, before))

    def _finish(self, partial: Path, name: str, remember: dict[str, Any], before: list[Future[None]]) -> None:
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        for one in before:  # in order, and one at a time; it was submitted first, so that it is not waited for in vain
            one.result()
        (self.files / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, self.files / name)
        self.state["finished"][name] = remember
        self.save()

    def settle(self) -> None:
        """Waits until all files are finished. OSError where one cannot be."""
        for one in self._finishing:
            one.result()

    def stop(self) -> None:
        """Waits for the background, whatever became of it."""
        self._background.shutdown(wait=True)

    def publish_file(self, name: str) -> None:
        """The only file becomes the target."""
        os.replace(self.files / name, self._target)
        _sync(self._target.parent)

    def publish_folder(self, index: str) -> None:
        """The folder becomes the target. Of what the target holds already, all but the old checkpoint stays in it."""
        _sync(self.files)
        if not self._target.exists():
            os.rename(self.files, self._target)
        elif not (self._target / index).is_file():  # no checkpoint to replace: one comes to be with its index
            for path in sorted(self.files.iterdir(), key=lambda path: (path.name == index, path.name)):
                os.replace(path, self._target / path.name)
        else:
            replaced = _checkpoint_files(self._target / index)
            later = []
            for path in sorted(self._target.iterdir()):
                if path.name in replaced or os.path.lexists(self.files / path.name):
                    continue
                if path.is_dir() and not path.is_symlink():
                    later.append(path.name)  # a folder has no second name
                else:
                    os.link(path, self.files / path.name, follow_symlinks=False)
            os.chmod(self.files, self._target.stat().st_mode & 0o7777)
            _exchange(self.files, self._target)
            for name in later:
                os.rename(self.files / name, self._target / name)
        _sync(self._target.parent)

    def forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def working(target: Path, job: dict[str, Any], function: str) -> Iterator[Work]:
    """The working folder for an output; gone after success and after an error, kept after a kill or an interrupt."""
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(target.parent))
    folder = target.with_name(f".{target.name}.gossamer")
    lock = _locked(folder, function)
    try:
        work = Work(target, folder, hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest())
        try:
            yield work
        except Exception:
            work.stop()
            work.forget()
            raise
        except BaseException:
            work.stop()
            raise
        work.stop()
        work.forget()
    finally:
        os.close(lock)


def _locked(folder: Path, function: str) -> int:
    """The folder, made if need be, with a lock that ends with this process."""
    while True:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise ValueError(f"{function}: {folder} must be free for the work, got something that is no folder")
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # another process has just finished and removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(folder / _LOCK) and os.path.samestat(os.stat(folder / _LOCK), os.fstat(lock)):
                return lock
        except BlockingIOError:
            os.close(lock)
            raise RuntimeError(
                f"{function}: another process is writing this output (its work is in {folder})"
            ) from None
        os.close(lock)


def _checkpoint_files(index: Path) -> set[str]:
    """The names in an index that is about to be replaced; whatever is wrong with it, only its own."""
    try:
        places = read_json(index, "work", "an index")[1].get("weight_map")
    except (OSError, ValueError):
        places = None
    return {index.name, *(str(name) for name in (places if isinstance(places, dict) else {}).values())}


def _exchange(one: Path, other: Path) -> None:
    """Two folders change names, both or neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), os.fspath(other))
    # A file system without exchange: for a moment there is no output, but never half of one.
    aside = one.with_name("old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
