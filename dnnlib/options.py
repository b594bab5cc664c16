"""Command-line options that are declared where their values live: at the fields of a configuration's dataclasses."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Option:
    """An option that sets a field. `{}` in its name stands for the field that holds the dataclass, as in `--{}-kimg`.

    name: of the parameter, such as 'batch_gpu'; type: click's; group: heading in --help; resumable: whether a run that goes on
    may be given another value, or the holders of the dataclass where it may; flag: the value that the bare option gives, None
    where it needs one.
    """

    name: str
    type: Any
    help: str
    group: str
    metavar: str | None = None
    resumable: bool | tuple = False
    flag: Any = None

    def of(self, holder):
        """The option of the dataclass that lies in the field `holder`."""
        resumable = holder in self.resumable if isinstance(self.resumable, tuple) else self.resumable
        return dataclasses.replace(self, name=self.name.format(holder), help=self.help.format(holder), resumable=resumable)


def setting(default, name, type, help, group, **more):
    """A dataclass field that a command-line option sets; default: the field's, MISSING where it has none."""
    option = Option(name, type, help, group, **more)
    return dataclasses.field(default=default, metadata={'option': option})


def options_of(config_class, holder=''):
    """The options of a dataclass and of those in its fields, each name once."""
    found = {}
    for item in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(item.type):
            found.update(options_of(item.type, item.name))
        elif 'option' in item.metadata:
            option = item.metadata['option'].of(holder)
            found[option.name] = option
    return found


def apply_options(config, given, holder=''):
    """A frozen dataclass with the values {name: value} of options in the place of those fields that the options set."""
    return dataclasses.replace(config, **changed_fields(config, given, holder))


def changed_fields(config, given, holder=''):
    """{field: value} of what the options {name: value} change in a dataclass."""
    changes = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            changes[item.name] = apply_options(value, given, item.name)
        elif 'option' in item.metadata:
            name = item.metadata['option'].of(holder).name
            if name in given:
                changes[item.name] = given[name]
    return changes


def option_values(config, holder=''):
    """{name: value} of all options of a dataclass and of those in its fields."""
    found = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found.update(option_values(value, item.name))
        elif 'option' in item.metadata:
            found[item.metadata['option'].of(holder).name] = value
    return found


def config_options(config_class, groups):
    """Decorator of a click command's function: all options of a dataclass, by groups, None where they are not given."""
    options = sorted(options_of(config_class).values(), key=lambda option: groups.index(option.group))

    def decorate(command):
        for option in reversed(options):
            flag = {} if option.flag is None else dict(is_flag=False, flag_value=option.flag)
            command = grouped_option(
                f'--{option.name.replace("_", "-")}',
                group=option.group,
                type=option.type,
                metavar=option.metavar,
                help=option.help,
                **flag,
            )(command)
        return command

    return decorate


def grouped_option(*names, group, **options):
    """`click.option` under a heading of --help."""
    return click.option(*names, cls=functools.partial(_GroupedOption, group), **options)


class _GroupedOption(click.Option):
    """An option under a heading of --help."""

    def __init__(self, group, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose --help shows options under their headings, in the order in which these first appear."""

    def format_options(self, ctx, formatter):
        groups = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, 'group', 'Options'), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
