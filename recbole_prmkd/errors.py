"""The exceptions of this package: mistakes that the user can correct, explained in one sentence."""


class UserError(Exception):
    """Bad input. Its text is one clear sentence that names the way out; the command line prints it alone."""


class NotFinite(UserError):
    """A training's loss or weights became NaN or infinite; the files that it had written are kept."""
