"""The one error that users see."""


class LrlsError(Exception):
    """Bad input: one line that names the scan or setting, what was found, what was expected, what to do next.

    Only `lrls_cli.main` prints it, without a traceback, and exits with 1. Anything else that is raised is a bug.
    """
