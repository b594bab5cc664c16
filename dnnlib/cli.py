"""What the command-line scripts share."""

import functools

import click
from click.core import ParameterSource

from dnnlib.errors import UserError, trouble_with_a_file


def friendly_errors(command):
    """Decorator of a click command's function: a `UserError` ends the script with `Error: ...` and exit code 1.

    So does an OSError that names a file, or that says that the disk is full. All other exceptions are bugs and keep
    their traceback. Stands directly above the function, below the options.
    """

    @functools.wraps(command)
    def wrapper(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (UserError, OSError) as error:
            line = str(error) if isinstance(error, UserError) else trouble_with_a_file(error)
            if line is None:
                raise
            raise click.ClickException(line) from None

    return wrapper


def refuse_idle(names, reason):
    """Raise UserError for options of the running command that were given, although they have no effect.

    names: of parameters; reason: when that is so, such as 'with --epi'. What a default says is not given.
    """
    context = click.get_current_context()
    idle = [
        option.opts[0]
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    ]
    if idle:
        several = len(idle) > 1
        raise UserError(
            f'{", ".join(idle)} {"have" if several else "has"} no effect {reason}: leave {"them" if several else "it"} out'
        )


def refuse_all_idle(table):
    """`refuse_idle` for those rows (whether, names, reason) of a table that are so."""
    for idle, names, reason in table:
        if idle:
            refuse_idle(names, reason)
