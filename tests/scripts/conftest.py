import pytest


@pytest.fixture
def nowhere(tmp_path):
    """Folders in which not even the superuser can write: one that would lie in a file, and one of the kernel's."""
    (tmp_path / 'file').write_text('')
    return [tmp_path / 'file', tmp_path / 'file' / 'sub', '/proc']
