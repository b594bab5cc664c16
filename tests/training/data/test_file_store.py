"""Names that are compared as paths; what cannot be listed, read or unpacked; labels and images that do not match."""

import os
import shutil
import struct
import unicodedata
import zipfile

import pytest

import dataset_tool
from metrics.consistency.views import folder_views
from tests.helpers import deadline, invoke
from tests.photographs import read_frames, refused, run, write_transforms
from tests.training.data.test_dataset import read_json, write_folder, write_labels, zip_folder
from training.data.dataset import DatasetError, FileStore, ImageDataset, PosedImageDataset, image_names

NAME = 'Fünf é.png'  # with letters that Unicode writes in two ways


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'set')


def store_of(tmp_path, *names):
    for name in names:
        path = tmp_path / 'files' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return FileStore(tmp_path / 'files')


def zip_of(path, files, method=zipfile.ZIP_STORED):
    """A zip of {name: content}, whatever the names are."""
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo('x')
            entry.filename, entry.compress_type = name, method
            archive.writestr(entry, content)
    return path


def fails(match, make, *arguments):
    with pytest.raises(DatasetError, match=match) as caught:
        make(*arguments)
    assert '\n' not in str(caught.value)


# Names


@pytest.mark.parametrize(
    'spelling',
    [
        'a/b/x.png',
        './a/b/x.png',
        'a//b/x.png',
        'a/./b/../b/x.png',
        'a\\b\\x.png',
        '.\\a\\b/x.png',
        '/a/b/x.png',
        '../files/a/b/x.png',
        'c/../../files/a/b/x.png',
        'a/b/x',
        'a/b/x.PNG',
        'a/b/x.Png',
    ],
)
def test_spellings_of_a_path(tmp_path, spelling):
    store = store_of(tmp_path, 'a/b/x.png', 'a/y.JPG', NAME)
    assert store.find(spelling) == 'a/b/x.png' and store.read(spelling) == b'a/b/x.png'


def test_absolute_paths_by_any_way_to_the_folder(tmp_path, monkeypatch):
    store_of(tmp_path, 'x.png')
    (tmp_path / 'link').symlink_to(tmp_path / 'files')
    for path in (tmp_path / 'files', tmp_path / 'link'):
        for root in (tmp_path / 'files', path):
            assert FileStore(path).find(f'{root}/x.png') == 'x.png'
    monkeypatch.chdir(tmp_path)
    assert FileStore('files').find(f'{tmp_path}/files/x.png') == 'x.png'


@pytest.mark.parametrize(
    'other', ['../x.png', '../other/x.png', '/elsewhere/x.png', 'C:\\set\\x.png', '', '.', '..', '/', 'x.jpg', 'x', 'X.png']
)
def test_other_paths_are_none(tmp_path, other):
    store = store_of(tmp_path, 'a/x.png')
    assert store.find(other) is None


def test_suffixes(tmp_path):
    names = [f'{number}{suffix}' for number, suffix in enumerate(['.PNG', '.Jpg', '.jpeg', '.TIF', '.tiff', '.webp', '.BMP'])]
    store = store_of(tmp_path, *names, 'notes.txt', 'model.h5', 'film.mpg', 'page.eps')
    assert image_names(store) == names
    assert [store.find(str(number)) for number in range(7)] == names and store.find('4.TIFF') == '4.tiff'
    assert store.find('4.v2') is None and 'notes' not in store


@pytest.mark.parametrize('form, other', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_accents(tmp_path, form, other):
    written, asked = unicodedata.normalize(form, NAME), unicodedata.normalize(other, NAME)
    assert written != asked
    for store in (store_of(tmp_path, written), FileStore(zip_of(tmp_path / 'z.zip', {written: b'x', 'y': b'y'}))):
        assert store.find(asked) == unicodedata.normalize('NFC', NAME) and store.read(asked)
    assert FileStore(tmp_path / 'z.zip').read(asked) == b'x'


def test_utf8_names_that_a_zip_does_not_declare(tmp_path):
    path = zip_of(tmp_path / 'z.zip', {NAME: b'x', 'y.png': b'y'})
    content = bytearray(path.read_bytes())
    for magic, at in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):  # take away the flag
        position = content.find(magic) + at
        content[position : position + 2] = struct.pack('<H', struct.unpack('<H', content[position : position + 2])[0] & ~0x800)
    path.write_bytes(content)
    assert FileStore(path).read(NAME) == b'x'


@pytest.mark.parametrize(
    'rename',
    [
        lambda name: f'top/{name}',
        lambda name: f'top/sub/{name}',
        lambda name: name.replace('/', '\\'),
        lambda name: f'./{name}',
        lambda name: f'/{name}',
        lambda name: name.replace('.png', '.PNG'),
    ],
)
def test_zips_of_other_programs(folder, tmp_path, rename):
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob('*') if file.is_file()}
    files = {rename(name): content for name, content in files.items()}
    path = zip_of(tmp_path / 'other.zip', {'top/': b'', '__MACOSX/top/._x.png': b'fork', '.DS_Store': b'', **files})
    posed, plain = PosedImageDataset(path), PosedImageDataset(folder)
    assert len(posed) == 5 and (posed.labels == plain.labels).all() and (posed[3][0] == plain[3][0]).all()
    assert posed.image_hash()
    run('convert', '--source', path, '--dest', tmp_path / 'out', '--resolution', 8)
    assert len(folder_views(path)) == 5


def test_labels_may_have_the_top_folder_of_a_zip_or_not(folder, tmp_path):
    write_labels(folder, {'labels': [[f'top/{name}', label] for name, label in read_json(folder)['labels']]})
    files = {f'top/{file.relative_to(folder).as_posix()}': file.read_bytes() for file in folder.rglob('*') if file.is_file()}
    assert len(PosedImageDataset(zip_of(tmp_path / 'top.zip', files))) == 5


def test_labels_in_other_spellings(folder):
    labels = read_json(folder)['labels']
    spell = [
        lambda name: f'{folder}/{name}',
        lambda name: f'./{name}',
        lambda name: name.replace('/', '\\'),
        lambda name: name.replace('a/', 'a//../a/'),
        str.upper,
    ]
    (folder / 'a/0.png').rename(folder / 'a/0.PNG')
    write_labels(
        folder, {'labels': [[rename(name), label] for rename, (name, label) in zip(spell[:4], labels)] + [['a/0', labels[4][1]]]}
    )
    posed = PosedImageDataset(folder)
    assert posed.notes == [] and [label[3] for _, label in labels][::-1] == pytest.approx(posed.labels[:, 3].tolist())


def test_frames_in_other_spellings(photographs, tmp_path):
    frames = read_frames(photographs)
    spell = [
        lambda path: f'{photographs}/{path}.png',
        lambda path: path.replace('/', '\\'),
        lambda path: f'../photographs/{path}',
        lambda path: f'{path}.PNG',
        lambda path: path,
    ]
    write_transforms(photographs, [{**frame, 'file_path': rename(frame['file_path'])} for rename, frame in zip(spell, frames)])
    assert 'images            5' in run('convert', '--source', photographs, '--dest', tmp_path / 'out', '--resolution', 16)


# What does not match


def test_labels_without_images_are_counted(folder):
    (folder / 'a/3.png').unlink()
    (folder / 'a/1.png').unlink()
    posed = PosedImageDataset(folder)
    assert len(posed) == 3 and posed.notes == [
        '2 cameras in dataset.json are left out, since their images are not there, first a/3.png'
    ]


def test_labels_that_are_there_twice_are_counted(folder):
    labels = read_json(folder)['labels']
    write_labels(folder, {'labels': [*labels, ['./a/2.png', labels[2][1]]]})
    assert PosedImageDataset(folder).notes == ['1 cameras in dataset.json are there twice, first a/2.png']
    write_labels(folder, {'labels': [*labels, ['a/2.png', labels[1][1]], ['a/4.png', labels[1][1]]]})
    fails('two different cameras for 2 images, first a/2.png', PosedImageDataset, folder)


def test_the_log_of_training_says_what_is_odd(folder):
    from training.presets import resolve
    from training.training_loop import TrainingRun

    (folder / 'a/0.png').unlink()
    run = TrainingRun.__new__(TrainingRun)
    run.dataset, run.config, run.device, run.saved, lines = (
        PosedImageDataset(folder),
        resolve('demo', folder, folder),
        'cpu',
        None,
        [],
    )
    run.device, run.first, run.log = type('Device', (), {'type': 'cpu'}), False, lines.append
    run._greet()
    assert lines[1] == run.dataset.notes[0] and 'a/0.png' in lines[1]


def test_pictures_beside_the_set_are_counted(folder):
    shutil.copy(folder / 'a/0.png', folder / 'preview.png')
    fails('1 of 6 images have no label in dataset.json, first preview.png', PosedImageDataset, folder)


@pytest.mark.parametrize('name', ['transforms.json', 'dataset.json'])
def test_missing_images_are_refused_or_skipped(photographs, folder, tmp_path, name):
    source = photographs if name == 'transforms.json' else folder
    first, second = sorted(source.glob('*/*.png'))[:2]
    first.unlink()
    second.unlink()
    options = ('convert', '--source', source, '--dest', tmp_path / 'out', '--resolution', 16)
    assert f'2 images that {name} names do not exist, first ' in refused(*options) and not (tmp_path / 'out').exists()
    output = run(*options, '--skip-missing')
    assert f'2 cameras in {name} are left out' in output and 'images            3' in output
    for path in source.glob('*/*.png'):
        path.unlink()
    assert refused(*options, '--skip-missing')


# What cannot be listed, read or unpacked


@pytest.mark.parametrize('method', [9, 12, 14, 93, 98, 1234])
def test_packing_that_python_lacks(folder, tmp_path, method, monkeypatch):
    path = zip_folder(folder, tmp_path / 'set.zip')
    content = bytearray(path.read_bytes())
    for magic, at in ((b'PK\x03\x04', 8), (b'PK\x01\x02', 10)):
        position = content.find(magic)
        while position >= 0:
            content[position + at : position + at + 2] = struct.pack('<H', method)
            position = content.find(magic, position + 4)
    path.write_bytes(content)
    fails(
        'set.zip: .*cannot be read' if method in (12, 14) else 'set.zip: .* is compressed with .*: pack the zip anew',
        lambda: PosedImageDataset(path)[0],
    )


def test_passwords(folder, tmp_path):
    path = zip_folder(folder, tmp_path / 'set.zip')
    content = bytearray(path.read_bytes())
    content[content.find(b'PK\x01\x02') + 8] |= 1
    path.write_bytes(content)
    fails('set.zip: .* is encrypted: pack the zip anew, without a password', ImageDataset, path)


def test_damaged_zips(folder, tmp_path):
    path = zip_folder(folder, tmp_path / 'set.zip')
    content = path.read_bytes()
    directory = content.index(b'PK\x01\x02')
    for damaged in (
        content[: len(content) // 2],
        content[:directory] + content[-22:],
        content[: directory + 10] + b'\xff' * 30 + content[directory + 40 :],
        content[:30] + content[60:],
        b'PK\x03\x04' + bytes(100),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match='set.zip'):
            [PosedImageDataset(path)[index] for index in range(5)]


def test_entries_outside_and_duplicates(tmp_path):
    fails(r'holds \.\./x.png, which would lie outside', FileStore, zip_of(tmp_path / 'a.zip', {'../x.png': b'', 'a.png': b''}))
    fails(r'holds a\\..\\..\\x.png', FileStore, zip_of(tmp_path / 'b.zip', {'a\\..\\..\\x.png': b'', 'a.png': b''}))
    fails('holds two files by the name of a/x.png', FileStore, zip_of(tmp_path / 'c.zip', {'a/x.png': b'', 'a//x.png': b''}))


def test_zips_within_and_no_pictures(tmp_path):
    fails(
        'contains no images, but inner.ZIP: unpack it', ImageDataset, zip_of(tmp_path / 'a.zip', {'inner.ZIP': b'', 'a.txt': b''})
    )
    fails(
        'contains no images, only files such as a.heic; give',
        ImageDataset,
        zip_of(tmp_path / 'b.zip', {'a.heic': b'', 'b.h5': b''}),
    )
    fails('contains no images; give', ImageDataset, zip_of(tmp_path / 'empty.zip', {}))


def test_cameras_that_lie_deeper_are_pointed_at(folder):
    fails('has no dataset.json at its top, but dataset.json in set: give that folder', PosedImageDataset, folder.parent)
    packed = zip_of(
        folder.parent / 'b.zip', {'top/a.png': next(folder.rglob('*.png')).read_bytes(), 'top/dataset.json': b'{}', 'README': b''}
    )
    fails('but dataset.json in top: pack what is in it, and nothing else', PosedImageDataset, packed)


def test_what_is_no_regular_file_is_named_and_does_not_hang(folder):
    os.mkfifo(folder / 'a/3a.png')
    with deadline():
        fails('a/3a.png cannot be read .*no regular file', ImageDataset, folder)
    (folder / 'a/3a.png').unlink()
    os.mkfifo(folder / 'pipe')  # nobody reads it
    (folder / 'b.png').mkdir()  # a folder by a picture's name
    shutil.move(folder / 'a/4.png', folder / 'b.png/4.png')
    assert len(ImageDataset(folder)) == 5
    (folder / 'c.png').mkdir()
    (folder / 'dataset.json').unlink()
    (folder / 'dataset.json').mkdir()
    fails('has no dataset.json at its top', PosedImageDataset, folder)
    os.mkfifo(folder.parent / 'pipe')
    with deadline():
        fails('neither a zip nor a folder', ImageDataset, folder.parent / 'pipe')


@pytest.mark.parametrize('target', ['nowhere', 'link', '.', '..'])
def test_links_that_lead_nowhere_or_back(folder, target):
    (folder / 'a/link').symlink_to(target)
    fails('a/link cannot be read', FileStore, folder)
    (folder / 'a/link').rename(folder / 'a/.link')  # as editors leave them
    assert len(PosedImageDataset(folder)) == 5


def test_folders_that_cannot_be_listed(folder, monkeypatch):
    scan = os.scandir

    def scandir(path):
        if str(path).endswith('a'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    fails('set/a cannot be read .Permission denied.', ImageDataset, folder)


def test_files_that_cannot_be_read(folder, monkeypatch):
    (folder / 'a/2.png').unlink()
    dataset = PosedImageDataset(folder)
    (folder / 'a/1.png').unlink()  # while the program runs
    fails('a/1.png cannot be read', lambda: dataset[1])

    def denied(*arguments, **options):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('builtins.open', denied)
    fails('dataset.json cannot be read .Permission denied.', FileStore(folder).read, 'dataset.json')


@pytest.mark.parametrize(
    'content', [b'\xff\xfe\x00', b'{"labels": \xe9}', '{"labels": [["é.png", 1]]}'.encode('latin-1'), b'\x00']
)
def test_labels_that_are_not_utf8(folder, content):
    (folder / 'dataset.json').write_bytes(content)
    fails('dataset.json cannot be read', PosedImageDataset, folder)


def test_labels_with_a_byte_order_mark(folder):
    (folder / 'dataset.json').write_bytes(b'\xef\xbb\xbf' + (folder / 'dataset.json').read_bytes())
    assert len(PosedImageDataset(folder)) == 5


def test_every_script_ends_in_one_line(folder, tmp_path):
    import calc_metrics
    import train

    (folder / 'a/link').symlink_to('link')
    for script, arguments in (
        (dataset_tool.main, ['convert', f'--source={folder}', f'--dest={tmp_path}/out', '--resolution=8']),
        (train.main, ['--preset=demo', f'--data={folder}', f'--run-dir={tmp_path}/run', '--imitation=pyramid']),
        (calc_metrics.main, ['--metrics=swd', f'--images={folder}', f'--data={folder}', f'--outdir={tmp_path}']),
    ):
        result = invoke(script, *arguments)
        assert result.exit_code == 1 and 'a/link cannot be read' in result.output and 'Traceback' not in result.output
    assert not list(tmp_path.glob('out*')) and not (tmp_path / 'run').exists()
