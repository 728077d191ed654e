"""What the user can fix, as opposed to defects of the program.

`UserError` ends a run with exit code 2 and nothing but its message; any other exception is a defect of the
program and ends it with exit code 1 and a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can fix. The message names the file, line and value, and says how to fix it."""


class Diverged(UserError):
    """The loss or the gradient of a training step is not finite. Raised on every rank alike, after the model
    has been restored for the stages and runs that follow."""


class Interrupted(Exception):
    """A stop signal reached the ranks: what was done is saved, and the same command resumes from it."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the name closest to `name`, or an empty string."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
