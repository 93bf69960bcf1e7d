"""The one error a user can cause."""


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a contradictory setting.

    The message is one sentence that names the file (and the line, where there is one) and the
    remedy. Entry points print it after ``error:`` without a traceback and exit with status 1;
    every other exception is a bug of ours and keeps its traceback.
    """
