"""The one exception that is shown to users without a traceback."""


class UserError(Exception):
    """A mistake of the user's: shown as one line, without traceback. The line names the cause and the cure."""
