"""What `--force` overrides."""

from __future__ import annotations

from packager.errors import FtpackError
from packager.progress import Progress


def refuse_unless(force: bool, error: FtpackError, progress: Progress) -> None:
    """Raise `error`; with `force`, warn with its message and continue.

    The one policy of `--force`: it overrides findings about a result that can be written all the
    same, such as a missing tensor or a prompt that differs. It never makes an unreadable file
    readable, an unsupported format supported, or one weight different from what it would be.

    Raises:
        FtpackError: `error` itself, unless `force` is true.
    """
    if not force:
        raise error
    progress.warn(error.message.removesuffix("."))
