"""The one exception of this package: a mistake that the user can correct, explained in one sentence."""


class UserError(Exception):
    """Bad input. Its text is one clear sentence that names the way out; the command line prints it alone."""
