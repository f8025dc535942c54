"""Locks between processes, also on file systems that have none.

The kernel frees the lock of a process that dies. Where it has no locks (some network and FUSE file
systems), a file that exists is the lock; filelock takes over one whose process is gone.
"""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

# That a file system has no locks is no news to whoever waits for a download.
warnings.filterwarnings("ignore", category=UserWarning, module=r"filelock\.")

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


def try_lock(path: Path) -> BaseFileLock | None:
    """The lock, now held by this process; None while another one has it. Raises OSError."""
    lock: BaseFileLock = FileLock(path, mode=0o664)
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        return None
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    lock = SoftFileLock(path.with_name(f"{path.name}.soft"), mode=0o664)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
