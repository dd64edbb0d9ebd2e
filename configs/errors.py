"""The one error that means: the user can mend this."""


class UserError(ValueError):
    """Something that the user asked for cannot be done; the message says what, where, and what to do.

    The `wizard` command prints it without a traceback and exits with 2.
    """
