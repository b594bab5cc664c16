"""How the code is built: what one training step passes through, how long functions are, which room imports which.

    python -m benchmarks.structure
    python -m benchmarks.structure --static      # without the step, which takes some seconds

The step is the first of stage 2 of the demo preset, in this process, with every regularisation that comes at intervals. A
network's own forward pass counts as one call: what it calls is not looked into, for the depth; files and functions are
counted both with it and without. A function's length is that of its lines, docstring included. Code is every line that is
neither blank nor comment nor docstring; logical lines do not depend on how the code is formatted. An import inside a
function is an arrow like any other.
"""

import ast
import io
import itertools
import os
import runpy
import statistics
import sys
import tempfile
import tokenize
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
# Where a step begins: (file, function). The first one that is called counts.
STEPS = (('training/step.py', 'training_step'), ('training/stage.py', 'step'))
NETWORKS = 'training/networks/'
# From below. A module may import what lies below it and what lies beside it; the longest name that fits says where it is.
LAYERS = (
    ('dnnlib',),
    ('training.config', 'training.presets'),
    ('torch_utils',),
    ('training.rendering',),
    ('training.networks',),
    ('interop',),
    ('training',),
    ('shape_utils', 'sampling'),
    ('dataset_prep',),
    ('metrics',),
    ('scripts',),
)
BESIDE = ('tests', 'benchmarks')  # not a part of the product
SOURCES = ('*.py', '*.cpp', '*.cu', '*.h')
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


class Source(NamedTuple):
    """A file of the project: its path from the root, its dotted name, and its room, which is its folder."""

    path: str
    module: str
    room: str

    @property
    def is_product(self):
        return self.room.split('/')[0] not in BESIDE

    @property
    def text(self):
        return (ROOT / self.path).read_text()


def sources():
    """The project's files of the kinds in SOURCES: those at the top, and those of packages."""
    packages = [path.parent for path in ROOT.glob('*/__init__.py')]
    paths = [*ROOT.glob('*.py'), *(path for package in packages for kind in SOURCES for path in package.rglob(kind))]
    return [_source(str(path.relative_to(ROOT))) for path in sorted(paths)]


def _source(path):
    parts = Path(path).with_suffix('').parts
    return Source(path, '.'.join(parts[:-1] if parts[-1] == '__init__' else parts), '/'.join(parts[:-1]) or 'scripts')


# ---------------------------------------------------------------------------------------------------------------------
# A step


class Call(NamedTuple):
    """A function of the project, and how it was reached: the project's functions from the step's on, itself the last."""

    chain: tuple  # of (file, function)
    in_network: bool  # below a network's own forward


class StepTrace:
    """A profiler that keeps the project's calls between a step's first call and its return."""

    def __init__(self):
        self.calls, self._step, self._paths = set(), None, {}

    def __call__(self, frame, event, argument):
        if event == 'return' and frame is self._step:
            sys.setprofile(None)
        elif event == 'call' and self._path(frame):
            if self._step is None and (self._path(frame), frame.f_code.co_name) in STEPS:
                self._step = frame
            if self._step is not None:
                self.calls.add(self._call(frame))

    def _call(self, frame):
        frames = [frame]
        while frames[-1] is not self._step:
            frames.append(frames[-1].f_back)
        frames = [f for f in reversed(frames) if self._path(f)]
        return Call(tuple((self._path(f), _name(f.f_code)) for f in frames), any(map(self._is_forward, frames[:-1])))

    def _is_forward(self, frame):
        return (
            frame.f_code.co_name == 'forward'
            and self._path(frame).startswith(NETWORKS)
            and isinstance(frame.f_locals.get('self'), torch.nn.Module)
        )

    def _path(self, frame):
        """The frame's file from the root; '' for others' code and for the expressions that Python makes frames of."""
        code = frame.f_code
        if code not in self._paths:
            own = code.co_filename.startswith(f'{ROOT}{os.sep}') and '.venv' not in code.co_filename
            hidden = code.co_name in ('<listcomp>', '<setcomp>', '<dictcomp>', '<genexpr>', '<module>')
            self._paths[code] = os.path.relpath(code.co_filename, ROOT) if own and not hidden else ''
        return self._paths[code]


def _name(code):
    return getattr(code, 'co_qualname', code.co_name)  # with its class from Python 3.11 on


def trace_step():
    """The Calls of the first step of stage 2."""
    trace = StepTrace()
    with tempfile.TemporaryDirectory() as folder:
        data = f'{folder}/data.zip'
        _run_script('dataset_tool.py', 'demo', f'--dest={data}', '--images=8')
        _run_script(
            'train.py',
            '--preset=demo',
            f'--data={data}',
            f'--run-dir={folder}/run',
            '--stage1-kimg=0',
            '--stage2-kimg=0.008',
            '--share-fakes=false',
            '--gpus=1',
            '--workers=0',
            '--threads=1',
            profiler=trace,
        )
    if not trace.calls:
        raise SystemExit(f'no step was seen: {ROOT / "benchmarks/structure.py"} names those that begin one in STEPS')
    return trace.calls


def _run_script(name, *arguments, profiler=None):
    """Run a script of the project in this process."""
    former, said = sys.argv, io.StringIO()
    sys.argv = [name, *arguments]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            sys.setprofile(profiler)
            runpy.run_path(str(ROOT / name), run_name='__main__')
    except SystemExit as end:
        if end.code:
            raise SystemExit(f'{name} failed:\n{said.getvalue()}') from None
    finally:
        sys.setprofile(None)
        sys.argv = former


def describe_step(calls):
    outside = [call for call in calls if not call.in_network]
    deepest = max(outside, key=lambda call: len(call.chain))
    yield ('', 'networks as one call', 'all calls')
    for name, count in (
        ('files', lambda some: len({call.chain[-1][0] for call in some})),
        ('functions', lambda some: len({call.chain[-1] for call in some})),
        ('calls deep', lambda some: max(len(call.chain) for call in some)),
    ):
        yield (name, count(outside), count(calls))
    yield ()
    yield ('deepest:', ' > '.join(name for _, name in deepest.chain))
    for path in sorted({call.chain[-1][0] for call in calls}):
        yield (path, '' if any(call.chain[-1][0] == path for call in outside) else 'in networks only')


# ---------------------------------------------------------------------------------------------------------------------
# Functions and lines


class Function(NamedTuple):
    path: str
    name: str
    length: int


def functions(source):
    """The functions of a Python file, nested ones and methods included; of another file, none."""
    if not source.path.endswith('.py'):
        return []
    nodes = [node for node in ast.walk(ast.parse(source.text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [Function(source.path, node.name, node.end_lineno - node.lineno + 1) for node in nodes]


def code_lines(source):
    """How many lines are neither blank nor comment nor docstring, and how many logical lines they are: a statement is one
    however it is broken. Of C++, lines only."""
    if not source.path.endswith('.py'):
        return sum(bool(line.strip()) and not line.strip().startswith('//') for line in source.text.splitlines()), 0
    lines, ends = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.NEWLINE:
            ends.add(token.start[0])
        elif token.type not in LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines), len(lines & ends)


def describe_rooms(files):
    yield ('room', 'files', 'functions', 'median', 'longest', 'lines', 'code', 'logical')
    rooms = [(room, list(group)) for room, group in itertools.groupby(sorted(files, key=lambda f: f.room), key=lambda f: f.room)]
    rooms.sort(key=lambda room: not room[1][0].is_product)
    totals = [('product', [f for f in files if f.is_product]), ('all', files)]
    for name, group in [*rooms, *totals]:
        lengths = [function.length for f in group for function in functions(f)]
        yield (
            name,
            len(group),
            len(lengths),
            f'{statistics.median(lengths or [0]):g}',
            max(lengths, default=0),
            sum(f.text.count('\n') for f in group),
            *map(sum, zip(*map(code_lines, group))),
        )


def longest_functions(files, most=5):
    return sorted((function for f in files if f.is_product for function in functions(f)), key=lambda one: -one.length)[:most]


# ---------------------------------------------------------------------------------------------------------------------
# Arrows


def arrows(files):
    """{(importing module, imported module)} among the files, wherever in a file the import stands."""
    known = {f.module for f in files}
    found = set()
    for f in files:
        if f.path.endswith('.py'):
            for module, name in itertools.chain.from_iterable(map(_imported, ast.walk(ast.parse(f.text)))):
                found.add((f.module, f'{module}.{name}' if f'{module}.{name}' in known else module))
    return {(source, target) for source, target in found if target in known and source != target}


def _imported(node):
    """(module, name in it) of what a node imports."""
    if isinstance(node, ast.Import):
        return [(alias.name, '') for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module, alias.name) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module') and isinstance(node.args[0], ast.Constant):
        return [(node.args[0].value, '')]
    return []


def layer(module):
    """Number in LAYERS; a module without a room is a script."""
    fits = [(len(name), number) for number, names in enumerate(LAYERS) for name in names if f'{module}.'.startswith(f'{name}.')]
    return max(fits)[1] if fits else len(LAYERS) - 1


def upward(found):
    """The arrows that run up."""
    return sorted((source, target) for source, target in found if layer(target) > layer(source))


def circles(found):
    """The arrows that a way leads back from: without them there is no circle."""
    below = {}
    for source, target in found:
        below.setdefault(source, set()).add(target)

    def leads(start, goal):
        seen, open_ones = set(), [start]
        while open_ones:
            for following in below.get(open_ones.pop(), ()):
                if following == goal:
                    return True
                if following not in seen:
                    seen.add(following)
                    open_ones.append(following)
        return False

    return sorted((source, target) for source, target in found if leads(target, source))


def script_imports(files, found):
    """The arrows to scripts, but for those of tests."""
    scripts = {f.module for f in files if f.room == 'scripts'}
    return sorted((source, target) for source, target in found if target in scripts and not source.startswith('tests.'))


def product_arrows(files):
    return arrows([f for f in files if f.is_product])


def describe_arrows(files):
    found, room = product_arrows(files), {f.module: f.room for f in files}
    between = sorted((room[source], room[target]) for source, target in found if room[source] != room[target])
    yield ('from', 'to', 'imports')
    for (source, target), group in itertools.groupby(between):
        yield (source, target, len(list(group)))
    yield ()
    for name, bad in (
        ('arrows up', upward(found)),
        ('arrows in circles', circles(found)),
        ('imports of scripts', script_imports(files, arrows(files))),
    ):
        yield (f'{name}: {len(bad)}', ', '.join(f'{source} > {target}' for source, target in bad))


# ---------------------------------------------------------------------------------------------------------------------


def table(title, rows):
    """Lines of text; columns are as wide as their cells, but for the last."""
    rows = [tuple(map(str, row)) for row in rows]
    widths = {}
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            widths[column] = max(widths.get(column, 0), len(cell))
    yield f'\n{title}\n'
    for row in rows:
        yield '  ' + '  '.join(cell.ljust(widths.get(column, 0)) for column, cell in enumerate(row)).rstrip()


@click.command()
@click.option('--static', is_flag=True, help='Only what can be read from the files.')
def main(static):
    """Print the measures."""
    files = sources()
    parts = [] if static else [('One step of stage 2', describe_step(trace_step()))]
    parts += [
        ('Rooms', describe_rooms(files)),
        ('Longest functions', [(f.path, f.name, f.length) for f in longest_functions(files)]),
        ('Arrows between rooms', describe_arrows(files)),
    ]
    for title, rows in parts:
        print('\n'.join(table(title, rows)))


if __name__ == '__main__':
    main()
