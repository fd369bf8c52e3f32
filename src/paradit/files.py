"""Files that are either complete under their name or absent, and locks on file names. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from paradit.config.errors import InputError
from paradit.config.limits import MAX_FILE, shown, typed


def temporary_name(target: Path) -> Path:
    """Return an unused name for a temporary file in the folder of `target`, so on the same file system."""
    return target.absolute().parent / f".paradit-{os.getpid()}-{secrets.token_hex(4)}.part"


def behind_links(path: str | Path) -> Path:
    """Return the absolute path of a file with all symbolic links resolved, whether or not the file exists."""
    return Path(os.path.realpath(path))


def named(option: str, path: str | os.PathLike[str]) -> Path:
    """Return the path that a file name from the user stands for, with `~` expanded; the file need not exist.

    option: name of the option that gave the file name, for error messages. Raises InputError if no file can
    have this name.
    """
    if isinstance(path, str) and not path.strip():
        raise InputError(f"{option} is empty ({path!r}): give a name, or leave it out")
    if path == "-":
        raise InputError(f"{option} '-' would be a stream: name a file, or use ./- for a file of that name")
    try:
        found = Path(os.path.expanduser(path))  # noqa: PTH111 (does not raise if there is no such home)
        str(found).encode()  # libraries take names as UTF-8
        found.lstat()  # raises for names that the file system cannot have
    except TypeError:
        raise InputError(f"{option} must be a path, got {typed(path)}") from None
    except UnicodeEncodeError as error:
        why = f"cannot be written in {error.encoding}: name another"
        raise InputError(f"{option} {shown(str(path))} {why}") from None
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        why = str(error)
        if isinstance(error, OSError):
            limits = " (at most 255 bytes, 4095 with its folders)" * (error.errno == errno.ENAMETOOLONG)
            why = f"{error.strerror}{limits}"
        raise InputError(f"{option} {shown(str(path))} is not a usable name: {why}") from None
    return found


def name_words(text: str) -> list[str]:
    """Return the words of a text in lower case, to make a file name of.

    Words with characters that this system's file names cannot have are left out.
    """
    return [word for word in re.findall(r"\w+", text.lower()) if _is_nameable(word)]


def _is_nameable(word: str) -> bool:
    try:
        return bool(os.fsencode(word))
    except UnicodeEncodeError:
        return False


@contextmanager
def reserved(option: str, path: str | Path) -> Iterator[None]:
    """Reserve a file's name while the `with` block runs, so that no other process can reserve it.

    A lock on a hidden file beside it holds the name; the system frees the lock however this process ends. If
    the file system has no locks, nothing is held. option: name of the option that gave the file name, for
    error messages. Raises InputError if another process holds the name.
    """
    target = behind_links(path)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_locked(_lock_of(target)))
        except BlockingIOError:
            raise InputError(
                f"{option} {str(path)!r} is being written by another run: wait for it, or name another file"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def remove_left_lock(path: str | Path) -> None:
    """Remove the hidden lock file beside a file, left there if the process that reserved it was killed."""
    lock = _lock_of(behind_links(path))
    if lock.exists():
        # To release a lock removes its file. If a process still holds it, this raises, and the file stays.
        with contextlib.suppress(OSError), _locked(lock):
            pass


def _lock_of(target: Path) -> Path:
    # The target's name may already be as long as names can be, so the lock's name has its hash.
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.parent / f".paradit-{digest}.lock"


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Lock a file while the `with` block reads, changes and writes it.

    If another process holds the lock, waits until it is free. If the file system has no locks, nothing is
    held.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(_locked(_lock_of(behind_links(path)), wait=True))
        yield


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock while the `with` block runs. The lock file at `path` exists only while it is locked.

    wait: whether to wait if another process holds the lock. Raises BlockingIOError if another process holds
    it and `wait` is false.
    """
    import fcntl  # not on Windows

    while True:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not _is_at(path, file.fileno()):  # its last holder has just removed it
                continue
            try:
                yield
            finally:
                # While it is still locked. A process that has opened it meanwhile notices by `_is_at`.
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read_text(path: Path, most: int = MAX_FILE) -> str:
    """Return the text of a small UTF-8 file, with or without a byte order mark.

    Raises OSError, also if the file has more than `most` bytes, and UnicodeDecodeError if it is not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return content.decode("utf-8-sig")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, even if the machine fails meanwhile.

    If `path` is a symbolic link, the file that it points to is written. Raises OSError.
    """
    path = behind_links(path)
    part = temporary_name(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the system names no file if a disk is full
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Write a folder completely or not at all: the `with` block fills a hidden one, which then gets the name.

    Yields the hidden folder. Raises OSError.
    """
    part = temporary_name(path)
    part.mkdir()
    try:
        yield part
        part.rename(path)
    finally:
        remove(part)


def remove_parts(folder: Path, pids: Collection[int]) -> None:
    """Remove temporary files that processes have left in a folder.

    pids: ids of these processes, all of which have ended.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob(".paradit-*-*.part"):
            match = re.fullmatch(r"\.paradit-(\d+)-\w+\.part", path.name)
            if match and int(match[1]) in pids:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
