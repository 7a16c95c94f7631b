"""The exceptions of this package: mistakes that the user can correct, explained in one sentence."""

_LONGEST = 1500  # characters; values of the user's are quoted


class UserError(Exception):
    """Bad input. Its text is one clear sentence that names the way out; the command line prints it alone.

    The text is shortened in the middle where it is long, and is one line.
    """

    def __str__(self) -> str:
        text = " ".join(super().__str__().splitlines())
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class NotFinite(UserError):
    """A training's loss or weights became NaN or infinite; the files that it had written are kept."""
