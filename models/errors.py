"""The one exception whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """A problem that the user can act on; `str(error)` is one sentence: what is wrong and what to do.

    The command line prints it on stderr and exits with 1; the app shows it as a notice. Anything else that
    escapes is a bug of ours.
    """


class UnsupportedModelError(UserError):
    """The checkpoint is sound, but of a kind that this program does not run."""


class CheckpointError(UserError):
    """The checkpoint is missing, incomplete or damaged."""
