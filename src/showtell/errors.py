"""The base class of errors that a user can cause."""


class UserError(Exception):
    """An error that the user can fix: bad input, a missing file, contradictory settings.

    The message is one sentence that names the file (with the line, if any) and the remedy. Entry
    points print it after ``error:`` without a traceback and exit with status 1. Any other exception
    is a bug and keeps its traceback.
    """
