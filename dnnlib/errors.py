"""The one exception that is shown to users without a traceback."""

import errno

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # Python does not say of which file


def one_line(text):
    """Text whose line breaks and other unprintable letters are escaped: the name of a file may hold anything."""
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in str(text))


def first_line(error):
    """The first line of an exception's message, or its kind where it says nothing: libraries append advice of their own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class UserError(Exception):
    """A mistake of the user's: shown as one line, without traceback. The line names the cause and the cure."""

    def __init__(self, message):
        super().__init__(one_line(message))


def trouble_with_a_file(error):
    """The line for an OSError that names a file, or that says that the disk is full; None for any other exception."""
    if not isinstance(error, OSError):
        return None
    file = error.filename2 or error.filename  # of a renaming the new name, which the user gave
    if file is None and error.errno not in _NO_ROOM:
        return None
    return one_line(f'{file or "an output"}: {error.strerror}; choose another path or make room')
