"""The folder of a server without --state-dir. It goes with the server; one of a server that was killed goes at the next
start of any.

TEMPORARY/loraplex-RANDOM/
  server.lock          locked by the server as long as it lives
  store/               see `store`
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loraplex.server.errors import StateInvalid

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("loraplex")

PREFIX = "loraplex-"
LOCK = "server.lock"
"""By which such a folder is known, whatever else has the prefix: an operator's --state-dir has no file of this name."""
STORE = "store"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder for a store, deleted in the end. Raises StateInvalid."""
    lock: int | None = None
    try:
        try:
            _sweep(Path(tempfile.gettempdir()))
            # A thread that copies cannot be stopped, and must not keep the server from stopping.
            scratch = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            store = Path(scratch.name) / STORE
            store.mkdir()
            lock = _hold(Path(scratch.name))
        except OSError as error:
            raise StateInvalid(f"there is no place for adapters: {error}; give a --state-dir, or set TMPDIR") from None
        with scratch:
            yield store
    finally:
        if lock is not None:
            os.close(lock)


def _hold(folder: Path) -> int | None:
    """The descriptor by whose lock others know that this folder is in use; None where the system has no such locks."""
    if sys.platform == "win32":
        return None
    draft = folder / f".{LOCK}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks: nobody could tell that it is in use, so nobody is to find it
        os.close(descriptor)
        return None
    draft.rename(folder / LOCK)  # locked before there is such a file
    return descriptor


def _sweep(temporary: Path) -> None:
    """Delete the folders of servers that are gone."""
    if sys.platform == "win32":
        return
    for folder in temporary.glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            # Where everybody may write, another user could put something else in the place of what is not ours.
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                continue
            descriptor = os.open(folder / LOCK, os.O_RDONLY)
        except OSError:  # not a server's, or swept by another server just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The lock last, by which what cannot be deleted now is found again.
            for each in (folder / STORE, folder):
                with suppress(FileNotFoundError):
                    shutil.rmtree(each)
            logger.info("deleted %s: the server it belonged to was killed", folder)
        except BlockingIOError:
            continue
        except OSError as error:
            logger.warning("%s cannot be deleted, though the server it belonged to is gone: %s", folder, error)
        finally:
            os.close(descriptor)
