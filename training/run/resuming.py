"""Folders of runs: which one is meant, what it was started with, and whether another command may go on with it."""

import contextlib
import json
import os
import re

from dnnlib.files import LOCK_FILE, replacing
from dnnlib.options import flat, settings
from torch_utils.checkpoint import StateFolder
from training.config import ConfigError, RunConfig, check

OPTIONS_FILE = 'training_options.json'
LATEST = 'latest'


def claim_run_dir(outdir, preset):
    """Make the next free folder `<number>-<preset>` in outdir, which then is this process's, whoever else looks for one."""
    os.makedirs(outdir, exist_ok=True)
    while True:
        folder = next_run_dir(outdir, preset)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
            return folder


def next_run_dir(outdir, preset):
    """The next free folder in outdir, as `claim_run_dir` would make it."""
    taken = [int(match[1]) for name in _names(outdir) if (match := re.match(r'(\d+)-', name))]
    return os.path.join(outdir, f'{max(taken, default=-1) + 1:05d}-{preset}')


def run_to_resume(resume, outdir):
    """The folder that --resume means: itself, or for 'latest' the run in outdir that was last written to."""
    if resume != LATEST:
        check(os.path.isdir(resume), f'--resume={resume}: no such folder')
        check(
            _is_run(resume) or has_state(resume),
            f'--resume={resume} holds no run: name the folder that has {OPTIONS_FILE}, or start a run there with --run-dir',
        )
        return resume
    runs = [run for name in _names(outdir) if _is_run(run := os.path.join(outdir, name))]
    check(runs, f'--resume=latest: there is no run in {outdir}; name its folder, or give --outdir')
    return max(runs, key=lambda run: max(os.lstat(os.path.join(run, name)).st_mtime for name in _names(run)))


def write_options(config):
    """training_options.json: enough to start the same run."""
    with replacing(os.path.join(config.outdir, OPTIONS_FILE)) as file:
        file.write(json.dumps(config.to_dict(), indent=2).encode())


def saved_config(run_dir):
    """The RunConfig of the run in a folder; None where the folder is new or empty.

    Raises ConfigError for a folder that holds something else, or a run that nothing can be resumed from.
    """
    names = [name for name in _names(run_dir) if name != LOCK_FILE and not name.endswith('.tmp')]
    if not names:
        return None
    options = os.path.join(run_dir, OPTIONS_FILE)
    if os.path.isfile(options):
        config = _read_options(options)
    else:
        config = _options_of_state(run_dir, f'--run-dir={run_dir} is not empty and holds no run; name another folder')
    snapshots = sorted(
        name for name in names if re.fullmatch(r'network-snapshot-\d+(k\d+)?\.pkl', name) and re.search('[1-9]', name)
    )
    check(
        has_state(run_dir) or not snapshots,
        f'{run_dir} has no training state to go on from; start another run with '
        f'--init-from={os.path.join(run_dir, snapshots[-1]) if snapshots else ""}',
    )
    return config


def check_again(config):
    """What is found in the folder of a run once it is locked: the RunConfig of the run that lies there, or None.

    Raises ConfigError unless it is the run that `config` goes on with, or there is none: another process may have begun one
    since that was decided.
    """
    saved = saved_config(config.outdir)
    if saved is None:
        return None
    resumable = {path for path, option in settings(RunConfig).items() if option.resumable}
    for path, old in _differences(saved, config).items():
        check(
            path in resumable or path in ('data', 'outdir', 'data_content'),
            f'another run was begun in {config.outdir} meanwhile, which has {path} = {old}; name another folder',
        )
    return saved


def has_state(run_dir):
    """Whether there is any training state."""
    return bool(StateFolder(run_dir).paths())


def _read_options(path):
    try:
        with open(path) as file:
            return RunConfig.from_dict(json.load(file))
    except ConfigError as error:
        raise ConfigError(f'{path} does not fit this version: {error}') from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return _options_of_state(
            os.path.dirname(path), f'{path} cannot be read ({str(error)[:100]}); restore it, or name another folder'
        )


def _options_of_state(run_dir, otherwise):
    """The configuration that a training state carries; raises ConfigError with `otherwise` where there is none."""
    state = StateFolder(run_dir).load()
    check(state is not None, otherwise)
    return RunConfig.from_dict(state['options'])


def check_unchanged(saved, asked, options):
    """Raise ConfigError if any of the options {name: value} would change the run.

    saved: RunConfig; asked: options -> RunConfig, what they make of `saved`.
    """
    if _result(asked, options) == saved:
        return
    cure = (
        'start another run with --init-from=<its last snapshot>'
        if has_state(saved.outdir)
        else 'remove its folder, or name another'
    )
    for name, value in options.items():
        changed = _result(asked, {name: value})
        if changed not in (saved, None):
            path, old = next(iter(_differences(saved, changed).items()))
            raise ConfigError(
                f'{_spelled(name)}={value} would change the run in {saved.outdir}, which has {path} = {old}; '
                f'leave it out to go on, or {cure}'
            )
    raise ConfigError(
        f'{", ".join(map(_spelled, options))} would change the run in {saved.outdir}: leave them out to go on, or {cure}'
    )


def _spelled(name):
    return f'--{name.replace("_", "-")}'


def _result(asked, options):
    """What the options make of the run; None where they make no sense."""
    try:
        return asked(options)
    except ConfigError:
        return None


def _differences(first, second):
    """{dotted path: value in the first} of what two configurations differ in."""
    other = flat(second.to_dict())
    return {path: value for path, value in flat(first.to_dict()).items() if value != other[path]}


def _is_run(folder):
    return os.path.isfile(os.path.join(folder, OPTIONS_FILE))


def _names(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []
