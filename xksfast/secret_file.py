# SPDX-License-Identifier: Apache-2.0
"""Files that only their owner may read: tokens, PINs, keys. The one place that writes them.

A newcomer's trap: a file that is opened for everybody and closed to them afterwards was open for a moment, and one that is written in
place is half written for a moment. So the text goes to a file of mode 0600 beside it, to the disk, and only then gets its name.
"""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from xksfast.errors import OperatorError

MODE = 0o600


class FileThere(OperatorError):
    """It is not overwritten."""


def write_secret_file(path: Path, content: bytes, *, over: bool = False) -> None:
    """On disk, whole, when this returns; mode 0600 from the first byte. over: it may take the place of a file that is there.

    FileThere: there is such a file (without `over`), and it is there still. OperatorError: it cannot be written, and what was there
    before is there still; or the disk failed as the name was given.
    """
    try:
        fd, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # 0600, and a name that nobody has
        try:
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, MODE)  # mkstemp's mode is narrowed by the umask
                file.write(content)
                file.flush()
                os.fsync(fd)
            if over:
                os.replace(unfinished, path)
            else:
                os.link(unfinished, path)  # fails where a rename would take another file's place
        finally:
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
        sync_directory(path.parent)
    except FileExistsError:
        raise FileThere(f"{path} is there already: choose another name, or move it away first") from None
    except OSError as error:
        raise OperatorError(
            f"{path} cannot be written: {error.strerror}: see that its directory is there, has room and is yours to write in"
        ) from None


def sync_directory(directory: Path) -> None:
    """A name that was given or taken in it is on disk, too, when this returns; OSError when the disk fails.

    Some file systems do not sync directories, and some directories can be written but not read: there it is as good as it gets.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
