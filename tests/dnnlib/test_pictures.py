"""How picture files become 8-bit RGB: the same for training, metrics, converter and views."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dnnlib.pictures import PictureError, fits_proportions, picture_notes, read_header, read_picture
from metrics.consistency.views import folder_views
from tests.photographs import converted, refused, run
from tests.training.data.test_dataset import SIZE, write_folder
from training.data.dataset import ImageDataset, PosedImageDataset

QUARTERS = {
    1: lambda image: image,
    3: lambda image: image[::-1, ::-1],
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}


def encoded(image, kind='PNG', **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def some_image(width=12, height=8, channels=3):
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(data, background='black'):
    image = read_picture(data, background)
    assert image.mode == 'RGB' and read_header(io.BytesIO(data)).size == image.size
    return np.asarray(image)


def traits(data):
    return set(read_header(io.BytesIO(data)).traits)


def deep_png(colour_type, values, key=None):
    """A PNG of 16 bits per channel, made by hand. values: [H, W, C]; key: the values that are transparent."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    transparent = b'' if key is None else chunk(b'tRNS', struct.pack(f'>{len(key)}H', *key))
    head = struct.pack('>IIBBBBB', values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + transparent + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def test_plain_pictures_are_untouched():
    data = encoded(Image.fromarray(some_image()))
    np.testing.assert_array_equal(pixels(data), some_image())
    assert not traits(data) and picture_notes([read_header(io.BytesIO(data))]) == []


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', list(QUARTERS))
def test_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(Image.fromarray(some_image()), kind, exif=exif, **({'lossless': True} if kind == 'WEBP' else {}))
    np.testing.assert_array_equal(pixels(data), QUARTERS[orientation](some_image()))
    header = read_header(io.BytesIO(data))
    assert header.stored_size == (12, 8) and ('turned' in header.traits) == (orientation != 1)


def test_orientation_behind_the_pixels_of_a_png():
    exif = Image.Exif()
    exif[0x112] = 6
    data = encoded(Image.fromarray(some_image()), exif=exif)
    start = data.index(b'eXIf') - 4
    end = start + 12 + struct.unpack('>I', data[start : start + 4])[0]
    data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    np.testing.assert_array_equal(pixels(data), QUARTERS[6](some_image()))


@pytest.mark.parametrize('background, value', [('black', 0), ('white', 255)])
@pytest.mark.parametrize(
    'make',
    [
        lambda: encoded(Image.fromarray(np.dstack([some_image(), np.zeros((8, 12, 1), np.uint8)]))),
        lambda: encoded(Image.new('LA', (4, 4), (9, 0))),
        lambda: encoded(Image.new('RGB', (4, 4), (1, 2, 3)).quantize(4), transparency=0),
        lambda: encoded(Image.new('RGB', (4, 4), (1, 2, 3)), transparency=(1, 2, 3)),
        lambda: encoded(Image.new('L', (4, 4), 9), transparency=9),
        lambda: encoded(Image.new('1', (4, 4), 1), transparency=1),
        lambda: encoded(Image.new('RGBA', (4, 4), (9, 9, 9, 0)), 'WEBP', lossless=True),
        lambda: encoded(Image.new('RGBA', (4, 4), (9, 9, 9, 0)), 'TIFF'),
        lambda: deep_png(6, np.full((4, 4, 4), 40000) * [1, 1, 1, 0]),
        lambda: deep_png(2, np.full((4, 4, 3), 40000), (40000, 40000, 40000)),
        lambda: deep_png(0, np.full((4, 4, 1), 40000), (40000,)),
    ],
)
def test_what_is_transparent_shows_the_background(make, background, value):
    data = make()
    assert (pixels(data, background) == value).all() and 'alpha' in traits(data)


def test_half_transparent_pixels_are_mixed():
    data = encoded(Image.new('RGBA', (4, 4), (200, 100, 0, 51)))
    assert pixels(data, 'white')[0, 0].tolist() == [244, 224, 204] and pixels(data)[0, 0].tolist() == [40, 20, 0]


@pytest.mark.parametrize(
    'data',
    [
        deep_png(0, np.full((4, 4, 1), 40000)),
        deep_png(2, np.full((4, 4, 3), 40000)),
        deep_png(4, np.full((4, 4, 2), [40000, 65535])),
        encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16)), 'TIFF'),
        encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16)), 'PPM'),
    ],
)
def test_sixteen_bits_keep_their_brightness(data):
    assert (pixels(data) == 40000 >> 8).all() and 'deep' in traits(data)


def test_eight_bit_values_in_sixteen_bits_are_refused():
    """They would all become black."""
    with pytest.raises(PictureError, match='only the lower 8 are used'):
        pixels(deep_png(0, np.full((4, 4, 1), 200)))
    assert (pixels(deep_png(0, np.zeros((4, 4, 1), int))) == 0).all()


def test_palettes_grey_and_other_colours():
    image = Image.fromarray(some_image())
    for mode in ('P', 'L', '1'):
        np.testing.assert_array_equal(pixels(encoded(image.convert(mode))), image.convert(mode).convert('RGB'))
    cmyk = encoded(Image.new('CMYK', (4, 4), (0, 255, 255, 0)), 'TIFF')
    assert (pixels(cmyk) == [255, 0, 0]).all() and traits(cmyk) == {'cmyk'}


FRAMES = [Image.new('RGB', (8, 8), (60 * number, 0, 0)) for number in range(3)]


@pytest.mark.parametrize('kind', ['PNG', 'GIF', 'WEBP', 'TIFF'])
def test_several_frames_are_refused(kind):
    data = encoded(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    for read in (lambda: read_picture(data), lambda: read_header(io.BytesIO(data))):
        with pytest.raises(PictureError, match='holds 3 frames'):
            read()


def test_previews_of_phones_are_left_out():
    assert (pixels(encoded(FRAMES[2], 'MPO', save_all=True, append_images=FRAMES[:1]))[..., 0] > 110).all()


@pytest.mark.parametrize('numbers', [np.float32, np.int32])
def test_numbers_of_unknown_range_are_refused(numbers):
    data = encoded(Image.fromarray(np.ones((4, 4), numbers)), 'TIFF')
    with pytest.raises(PictureError, match='32-bit numbers'):
        read_picture(data)


@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP', 'GIF', 'TIFF', 'BMP', 'PPM', 'JPEG2000', 'AVIF'])
def test_truncated_pictures_are_refused(kind):
    data = encoded(Image.fromarray(some_image(64, 64)), kind)
    for length in (0, 10, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(PictureError, match='replace or remove it'):
            read_picture(data[:length])


def test_no_picture_and_no_programs():
    for data in (b'hello', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'\x93NUMPY'):
        with pytest.raises(PictureError, match='is no picture'):
            read_picture(data)


def test_proportions():
    for size in ((192, 108), (100, 56), (57, 32), (3840, 2160)):
        assert fits_proportions(size, (1920, 1080))
    for size in ((108, 192), (1920, 1088), (8, 8), (1919, 1000)):
        assert not fits_proportions(size, (1920, 1080))
    assert fits_proportions((8, 8), (8, 8)) and not fits_proportions((8, 8), (8, 9))


# The doors


@pytest.fixture
def transparent(tmp_path):
    """A set of three transparent pictures."""
    folder = write_folder(tmp_path / 'clear', 3)
    for path in folder.glob('a/*.png'):
        Image.new('RGBA', (SIZE, SIZE), (50, 60, 70, 0)).save(path)
    return folder


@pytest.mark.parametrize('background, value', [('black', 0), ('white', 255)])
def test_every_reader_composites_alike(transparent, tmp_path, background, value):
    said = run('convert', '--source', transparent, '--dest', tmp_path / 'out', '--resolution', SIZE, '--background', background)
    posed = PosedImageDataset(transparent, background=background)
    for image in (
        posed[0][0],
        ImageDataset(transparent, background=background)[1],
        PosedImageDataset(tmp_path / 'out')[2][0],
        folder_views(transparent, background=background).images,
    ):
        assert (image == value).all()
    line = f'3 of 3 images have an alpha channel: composited on {background}'
    assert posed.notes == [line] and line in said


def turn(path, orientation=6):
    """Store a picture as a phone does: turned, with an orientation that turns it back."""
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def test_phone_photographs_convert_as_upright_ones(photographs, tmp_path):
    upright = converted(photographs, tmp_path / 'upright')
    for path in (photographs / 'images').iterdir():
        turn(path)
    turned = converted(photographs, tmp_path / 'turned')
    assert (turned.labels == upright.labels).all() and all((turned[i][0] == upright[i][0]).all() for i in range(5))


def test_cameras_of_unturned_pictures_are_refused(photographs, tmp_path):
    path = photographs / 'images/2.png'
    exif = Image.Exif()
    exif[0x112] = 8
    Image.open(path).save(path, exif=exif)
    line = refused('convert', '--source', photographs, '--dest', tmp_path / 'out', '--resolution', 60)
    assert 'images/2.png measures 160x120 once its EXIF orientation is applied, but its camera is for 120x160' in line


@pytest.mark.parametrize('upright', [True, False])
def test_labels_of_turned_pictures(tmp_path, upright):
    (tmp_path / 'oblong').mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new('RGB', (100, 80)).save(tmp_path / 'oblong/a.jpg', exif=exif)
    label = np.concatenate(
        [np.eye(4).ravel(), [1.25, 0, 0.5, 0, 1.0, 0.5, 0, 0, 1] if upright else [1.0, 0, 0.5, 0, 1.25, 0.5, 0, 0, 1]]
    )
    label[11] = -2.7
    (tmp_path / 'oblong/dataset.json').write_text(json.dumps({'labels': [['a.jpg', label.tolist()]]}))
    options = ('convert', '--source', tmp_path / 'oblong', '--dest', tmp_path / 'out', '--resolution', 8)
    if upright:
        assert '1 of 1 images have an EXIF orientation' in run(*options)
    else:
        assert 'once its EXIF orientation is applied' in refused(*options)


def test_declared_sizes_of_other_proportions_are_refused(photographs, tmp_path):
    path = photographs / 'images/1.png'
    Image.open(path).crop((0, 0, 120, 120)).save(path)
    line = refused('convert', '--source', photographs, '--dest', tmp_path / 'out', '--resolution', 60)
    assert 'images/1.png measures 120x120, but its camera is for 120x160, of other proportions' in line
