"""What the scripts share: errors in one line, files that appear whole."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dnnlib import files
from dnnlib.cli import friendly_errors, refuse_idle
from dnnlib.errors import UserError
from dnnlib.files import cache_path, make_output_folder, replacing
from dnnlib.params import UserPath
from tests.helpers import ROOT, invoke


def outcome(error):
    """What a command that fails with `error` shows, or the exception that gets out of it."""

    @click.command()
    @friendly_errors
    def command():
        raise error

    result = invoke(command)
    assert result.exit_code == 1
    return result.output if isinstance(result.exception, SystemExit) else result.exception


@pytest.mark.parametrize(
    'error, line',
    [
        (UserError('do this'), 'Error: do this\n'),
        (
            PermissionError(errno.EACCES, 'Permission denied', 'a/b'),
            'Error: a/b: Permission denied; choose another path or make room\n',
        ),
        (
            OSError(errno.EXDEV, 'Invalid link', 'part', None, 'whole'),
            'Error: whole: Invalid link; choose another path or make room\n',
        ),
        (OSError(errno.ENOSPC, 'No space left'), 'Error: an output: No space left; choose another path or make room\n'),
    ],
)
def test_the_users_errors_are_one_line(error, line):
    assert outcome(error) == line


@click.command()
@click.option('--number', default=1)
@click.option('--given/--not-given', default=False)
@click.option('--other', envvar='MIMIC3D_TEST_OTHER')
@friendly_errors
def choosy(**options):
    refuse_idle(('number', 'given', 'other'), 'today')


@pytest.mark.parametrize(
    'arguments, environment, message',
    [
        ([], {}, ''),
        (['--number=1'], {}, 'Error: --number has no effect today: leave it out\n'),
        (['--not-given', '--number=2'], {}, 'Error: --number, --given have no effect today: leave them out\n'),
        ([], {'MIMIC3D_TEST_OTHER': 'x'}, 'Error: --other has no effect today: leave it out\n'),
    ],
)
def test_options_that_are_given_without_effect_are_named(arguments, environment, message):
    """Given as their default, too; the default itself is nobody's wish."""
    assert CliRunner().invoke(choosy, arguments, env=environment).output == message


@pytest.mark.parametrize('error', [ValueError('a bug'), OSError('a bug'), OSError(errno.EBADF, 'Bad descriptor')])
def test_bugs_keep_their_traceback(error):
    assert outcome(error) is error


def test_output_folders_are_made_and_tried(tmp_path):
    make_output_folder(tmp_path / 'a' / 'b')
    assert not list((tmp_path / 'a' / 'b').iterdir())
    (tmp_path / 'file').write_text('')
    for folder, message in (
        (tmp_path / 'file', 'is a file'),
        (tmp_path / 'file/sub', 'Not a directory'),
        ('/proc', 'cannot be written'),
    ):
        with pytest.raises(UserError, match=message):
            make_output_folder(folder)


def test_a_file_that_cannot_be_replaced_is_named_as_the_user_named_it(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'absent' / 'x.pkl', tmp_path / 'file' / 'x.pkl'):
        with pytest.raises(OSError) as caught, replacing(path):
            pass
        assert caught.value.filename == str(path)


# Paths


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A current folder and a home."""
    for name in ('here', 'home'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    return tmp_path


@pytest.mark.parametrize(
    'given, meant',
    [
        ('a/b.zip', 'here/a/b.zip'),
        ('./a', 'here/a'),
        ('-x.mp4', 'here/-x.mp4'),
        ('~/a', 'home/a'),
        ('~', 'home'),
        ('a~', 'here/a~'),
        ('../c', 'here/../c'),
        ('.', 'here'),
    ],
)
def test_paths_are_absolute_from_the_door_on(given, meant, places):
    assert UserPath().convert(given, None, None) == str(places / meant)


@pytest.mark.parametrize('given, message', [('', 'is empty'), ('~nobody-of-this-name/a', 'absolute path')])
def test_paths_that_lead_nowhere_are_refused(given, message, places):
    with pytest.raises(click.BadParameter, match=message):
        UserPath().convert(given, None, None)


def test_a_home_that_is_not_known_is_named(places, monkeypatch):
    monkeypatch.setattr(
        'pathlib.Path.expanduser', lambda path: (_ for _ in ()).throw(RuntimeError('Could not determine home directory.'))
    )
    with pytest.raises(click.BadParameter, match='home directory'):
        UserPath().convert('~/a', None, None)


# Words that stand for a file or folder in an option's help.
PLACES = {'PATH', 'ZIP|DIR', 'DIR', 'FILE', 'RUN_DIR', 'RUN_DIR|latest', 'RUN...'}


def commands():
    import calc_metrics
    import dataset_tool
    import gen_samples
    import gen_videos
    import train
    from training import legacy

    for command in (calc_metrics.main, dataset_tool.main, gen_samples.main, gen_videos.main, train.main, legacy.main):
        yield from [command, *getattr(command, 'commands', {}).values()]


def test_every_option_that_names_a_place_is_one_of_these_paths():
    for command in commands():
        for option in command.params:
            if isinstance(option.type, click.Path) or option.metavar in PLACES:
                assert isinstance(option.type, UserPath), (command.name, option.name)


# ---------------------------------------------------------------------------------------------------------------------
# The cache


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The home of a user; its cache can be read, and written where `writable` is not taken away."""
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    files._temporary_cache.cache_clear()
    return tmp_path


def test_the_cache_lies_in_the_home_or_where_the_user_has_it(user, monkeypatch):
    assert cache_path('a/b') == user / '.cache/mimic3d/a/b' and (user / '.cache/mimic3d/a').is_dir()
    monkeypatch.setenv('XDG_CACHE_HOME', str(user / 'other'))
    assert cache_path('b') == user / 'other/mimic3d/b'


def test_a_cache_that_cannot_be_written_is_temporary_but_read_where_it_can_be(user, monkeypatch):
    kept = cache_path('kept')
    kept.write_text('kept')

    def denied(**options):
        raise PermissionError(errno.EACCES, 'Permission denied', str(options['dir']))

    monkeypatch.setattr(files.tempfile, 'TemporaryFile', denied)
    assert cache_path('kept') == kept
    with pytest.warns(UserWarning, match='no cache folder can be written .*Permission denied.*set XDG_CACHE_HOME'):
        first = cache_path('new/file')
    first.write_text('new')
    assert user not in first.parents and cache_path('new/file').read_text() == 'new'


def test_a_temporary_cache_ends_with_its_process(tmp_path):
    script = 'from dnnlib.files import cache_path; path = cache_path("x"); path.write_text("x"); print(path)'
    (tmp_path / 'file').write_text('')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path / 'file')},
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).parent.exists()
