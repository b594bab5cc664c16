"""The one exception that is shown to users without a traceback."""


def one_line(text):
    """Text whose line breaks and other unprintable letters are escaped: the name of a file may hold anything."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in str(text))


class UserError(Exception):
    """A mistake of the user's: shown as one line, without traceback. The line names the cause and the cure."""

    def __init__(self, message):
        super().__init__(one_line(message))
