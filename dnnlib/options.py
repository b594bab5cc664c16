"""Command-line options that are declared where their values live: at the fields of dataclasses."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Option:
    """An option that sets a field. `{}` in its flag and help stands for the field that holds the dataclass, as in `--{}-kimg`.

    flag: as users type it, such as '--batch-gpu'; resumable: whether a run that goes on may be given another value, or the
    holders of the dataclass where it may; attributes: of click.option, with `default` where the field has one.
    """

    flag: str
    group: str  # heading in --help
    resumable: bool | tuple
    attributes: dict[str, Any]

    @property
    def name(self):
        """Of the parameter, such as 'batch_gpu'."""
        return self.flag.split('/')[0].lstrip('-').replace('-', '_')

    def of(self, holder):
        """The option of the dataclass that lies in the field `holder`."""
        resumable = holder in self.resumable if isinstance(self.resumable, tuple) else self.resumable
        attributes = {**self.attributes, 'help': self.attributes['help'].format(holder)}
        return dataclasses.replace(self, flag=self.flag.format(holder), resumable=resumable, attributes=attributes)


def setting(default, /, flag, type, help, group, resumable=False, **attributes):
    """A dataclass field that a command-line option sets; default: the field's, MISSING where it has none.

    attributes: more of click.option's; a `default` among them is the text that stands for the value.
    """
    known = {} if default is dataclasses.MISSING else {'default': default}
    option = Option(flag, group, resumable, {'type': type, 'help': help, **known, **attributes})
    return dataclasses.field(default=default, metadata={'option': option})


def settings(config_class, holder='', prefix=''):
    """{dotted path of a field: its Option} of a dataclass and of those in its fields. Several fields may have the same option."""
    found = {}
    for item in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(item.type):
            found |= settings(item.type, item.name, f'{prefix}{item.name}.')
        elif 'option' in item.metadata:
            found[prefix + item.name] = item.metadata['option'].of(holder)
    return found


def flat(values, prefix=''):
    """{dotted path: value} of nested dicts."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return found


def nested(values):
    """The nested dicts of {dotted path: value}."""
    root = {}
    for path, value in values.items():
        *holders, name = path.split('.')
        inner = root
        for holder in holders:
            inner = inner.setdefault(holder, {})
        inner[name] = value
    return root


def config_options(config_class, groups, **overrides):
    """Decorator of a click command's function: all options of a dataclass, by groups.

    overrides: attributes of all of them, such as default=None.
    """
    options = {option.name: option for option in settings(config_class).values()}

    def decorate(command):
        for option in sorted(options.values(), key=lambda option: groups.index(option.group))[::-1]:
            command = grouped_option(option.flag, group=option.group, **{**option.attributes, **overrides})(command)
        return command

    return decorate


def grouped_option(flag, **options):
    """`click.option` under the heading `group` of --help."""
    return click.option(flag, cls=_GroupedOption, **options)


class _GroupedOption(click.Option):
    def __init__(self, *args, group, **kwargs):
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


class GroupedGroup(GroupedCommand, click.Group):
    """A `GroupedCommand` with subcommands."""

    def format_options(self, ctx, formatter):
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
