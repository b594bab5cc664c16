"""The one exception that is shown to users without a traceback."""


class UserError(Exception):
    """A mistake of the user's: shown as one line, without traceback. The line names the cause and the cure."""

    def __init__(self, message):
        # A file's name may hold anything, a line break or half a letter, too.
        super().__init__(''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in str(message)))
