"""The command line: ``mt-convert ls | cp | check | run | finetune | eval | bench | export | …``.

One function per command; prints and exits, nothing else. What takes seconds to import is
imported by the command that needs it.
"""

from __future__ import annotations

import errno
import logging
import sys
import time
from typing import NoReturn

import typer

from ..errors import MTConvertError
from ..system import stopping
from ..system.progress import speaks
from . import recipes, runs, tables  # noqa: F401  (they add their commands)
from .shared import app

LAUNCHER_S = 10.0  # a launcher looks every few seconds whether a process has failed


def main() -> None:
    """Run the command line; an error the user can mend is one message and exit code 2."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime"
    try:
        with stopping.as_interrupts():
            app()
    except MTConvertError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        name = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        _fail(f"{name}{error.strerror}")
    except KeyboardInterrupt:
        sys.exit(stopping.exit_code())


_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.EISDIR),
)


def _fail(text: str) -> NoReturn:
    """Say what is wrong, once. Of several processes the first speaks; another one waits, because
    whoever launched them stops it as soon as the first has ended by the same fault."""
    if not speaks():
        time.sleep(LAUNCHER_S)
    typer.echo(f"error: {text}", err=True)
    sys.exit(2)
