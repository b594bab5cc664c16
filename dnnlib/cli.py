"""What the command-line scripts share."""

import functools

import click

from dnnlib.errors import UserError


def friendly_errors(command):
    """Decorator of a click command's function: a `UserError` ends the script with `Error: ...` and exit code 1.

    All other exceptions are bugs and keep their traceback. Stands directly above the function, below the options.
    """
    @functools.wraps(command)
    def wrapper(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except UserError as error:
            raise click.ClickException(str(error)) from None
    return wrapper
