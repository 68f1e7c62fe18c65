"""Errors whose fix is the user's. Each class is one exit code; `fovea` prints the text, no traceback.

A message says what is wrong, where (file, line or record), what is allowed, and what to do.
"""

import difflib
import errno
import os
import sqlite3
from collections.abc import Iterable


class FoveaError(Exception):
    """Base of every error that is shown to the user as plain text."""

    exit_code = 1


class ConfigError(FoveaError):
    """A recipe, an override or a command-line argument is wrong."""

    exit_code = 2


class PreflightError(FoveaError):
    """Something that the command needs is missing, or another process holds it: an earlier stage, a package,
    a device, a directory."""

    exit_code = 3


class DataError(FoveaError):
    """A data file breaks its contract: missing, truncated, altered or of another kind."""

    exit_code = 4


class NumericError(FoveaError):
    """The loss or the gradient norm is not finite; no checkpoint holds anything of that step."""

    exit_code = 5


class TransientError(FoveaError):
    """A process died from outside (kill, preemption); the same command resumes."""

    exit_code = 75


class NoProgressError(FoveaError):
    """Restarts that lead nowhere: whoever repeats commands should stop."""

    exit_code = 93


class PreemptedError(FoveaError):
    """Stopped on request, with everything saved; the same command goes on."""

    exit_code = 143


_MISPLACED = "name another place, or move away what is in its way"
_FORBIDDEN = "name another place, or have it made writable for you"
_FULL = "make room there; the same command goes on"
_REFUSALS: dict[int, tuple[type[FoveaError], str]] = {
    errno.ENOTDIR: (ConfigError, _MISPLACED),
    errno.EISDIR: (ConfigError, _MISPLACED),
    errno.EEXIST: (ConfigError, _MISPLACED),
    errno.EACCES: (ConfigError, _FORBIDDEN),
    errno.EPERM: (ConfigError, _FORBIDDEN),
    errno.EROFS: (ConfigError, _FORBIDDEN),
    errno.ENOSPC: (PreflightError, _FULL),
    errno.EDQUOT: (PreflightError, _FULL),
    errno.EFBIG: (PreflightError, "raise the limit of a file's size (ulimit -f); the same command goes on"),
}


def refusal(error: OSError | sqlite3.Error) -> FoveaError | None:
    """What a file system refused, where the fix is the user's: a place, a right, room. None: it is a bug."""
    if isinstance(error, sqlite3.Error):
        # Made by hand, an error of sqlite has no code.
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
            return None
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if (known := _REFUSALS.get(error.errno or 0)) is None:
        return None
    kind, fix = known
    where = f"{error.filename}: " if error.filename else ""
    return kind(f"{where}{error.strerror}\n  To mend it: {fix}.")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def printable(text: str) -> str:
    """Names and reasons come from inputs: what is no printable character is spelled out for a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(error: FoveaError) -> str:
    """The lines of an error's text, for a terminal."""
    return "\n".join(printable(line) for line in str(error).split("\n"))
