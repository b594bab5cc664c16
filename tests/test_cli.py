"""What the scripts share: errors in one line, files that appear whole."""

import errno

import click
import pytest
from click.testing import CliRunner

from dnnlib.cli import friendly_errors
from dnnlib.errors import UserError
from dnnlib.files import make_output_folder, replacing


def outcome(error):
    """What a command that fails with `error` shows, or the exception that gets out of it."""
    @click.command()
    @friendly_errors
    def command():
        raise error
    result = CliRunner().invoke(command)
    assert result.exit_code == 1
    return result.output if isinstance(result.exception, SystemExit) else result.exception


@pytest.mark.parametrize('error, line', [
    (UserError('do this'), 'Error: do this\n'),
    (PermissionError(errno.EACCES, 'Permission denied', 'a/b'), 'Error: a/b: Permission denied; choose another path or make room\n'),
    (OSError(errno.EXDEV, 'Invalid link', 'part', None, 'whole'), 'Error: whole: Invalid link; choose another path or make room\n'),
    (OSError(errno.ENOSPC, 'No space left'), 'Error: an output: No space left; choose another path or make room\n'),
])
def test_the_users_errors_are_one_line(error, line):
    assert outcome(error) == line


@pytest.mark.parametrize('error', [ValueError('a bug'), OSError('a bug'), OSError(errno.EBADF, 'Bad descriptor')])
def test_bugs_keep_their_traceback(error):
    assert outcome(error) is error


def test_output_folders_are_made_and_tried(tmp_path):
    make_output_folder(tmp_path / 'a' / 'b')
    assert not list((tmp_path / 'a' / 'b').iterdir())
    (tmp_path / 'file').write_text('')
    for folder, message in ((tmp_path / 'file', 'is a file'), (tmp_path / 'file/sub', 'Not a directory'), ('/proc', 'cannot be written')):
        with pytest.raises(UserError, match=message):
            make_output_folder(folder)


def test_a_file_that_cannot_be_replaced_is_named_as_the_user_named_it(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'absent' / 'x.pkl', tmp_path / 'file' / 'x.pkl'):
        with pytest.raises(OSError) as caught, replacing(path):
            pass
        assert caught.value.filename == str(path)
