"""Picture files to 8-bit RGB: the one way in which training, metrics and the converter read them."""

import contextlib
import dataclasses
import io
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')  # of tags that nobody reads

PICTURE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.ppm', '.pgm', '.jp2', '.avif')
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF')
_TURNED_BY_A_QUARTER = (5, 6, 7, 8)  # EXIF orientations
_LARGEST_STRETCH = 0.05  # of a resized picture's proportions, by rounding to whole pixels
# What a picture can be besides 8-bit RGB, and what `read_picture` does about it.
_TRAITS = {
    'alpha': 'have an alpha channel: composited on {background}',
    'turned': 'have an EXIF orientation: turned upright',
    'deep': 'have 16 bits per channel: reduced to 8',
    'cmyk': 'are CMYK: converted to RGB without a colour profile',
}


class PictureError(ValueError):
    """A picture that cannot be used; the message goes on after the name of the picture."""


@dataclasses.dataclass(frozen=True)
class PictureHeader:
    """What the head of a picture file says. size: (width, height) in pixels, upright; stored_size: before the EXIF
    orientation is applied; traits: what it is besides 8-bit RGB, for `picture_notes`."""

    size: tuple
    stored_size: tuple
    traits: frozenset


def read_header(file):
    """The PictureHeader of a binary file object. Raises PictureError."""
    with _reading(), Image.open(file, formats=_FORMATS) as image:
        _check_kind(image)
        orientation = _orientation(image)
        turned = orientation in _TURNED_BY_A_QUARTER
        # Pillow gives the size of a TIFF upright, and that of all others as stored.
        size, other = image.size, image.size[::-1] if turned else image.size
        upright, stored = (size, other) if image.format == 'TIFF' else (other, size)
        present = {
            'alpha': image.has_transparency_data,
            'turned': orientation > 1,
            'deep': _is_deep(image),
            'cmyk': image.mode == 'CMYK',
        }
    return PictureHeader(upright, stored, frozenset(trait for trait in present if present[trait]))


def read_picture(data, background='black'):
    """The picture in the bytes of a file, as an RGB image of PIL, 8 bits per channel.

    The EXIF orientation is applied; transparent pixels are composited on `background`, a colour name; 16 bits per channel
    keep their upper 8; palettes, grey and CMYK become RGB. Raises PictureError for what is broken, animated, or has no
    known range (32-bit and float images, and 8-bit values in 16 bits).
    """
    with _reading():
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_kind(image)
        deep = _is_deep(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _opaque(_reduced(image) if deep else image, background)


def picture_notes(headers, background='black'):
    """What `read_picture` does to pictures with these headers, counted, as lines of text."""
    counts = {trait: sum(trait in header.traits for header in headers) for trait in _TRAITS}
    return [
        f'{counts[trait]} of {len(headers)} images {text.format(background=background)}'
        for trait, text in _TRAITS.items()
        if counts[trait]
    ]


def fits_proportions(size, declared):
    """Whether a picture of `size` (width, height) is one of the `declared` size, or that resized: a pixel may be rounded."""
    (width, height), (declared_width, declared_height) = size, declared
    off = abs(width * declared_height - declared_width * height)
    return off <= min(max(*size, *declared), _LARGEST_STRETCH * width * declared_height)


@contextlib.contextmanager
def _reading():
    """Whatever goes wrong with the content of a picture file, as PictureError."""
    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError('is no picture, or of a kind that is not read: replace or remove it') from None
    except Exception as error:  # damaged files fail in many ways, and all have one cure
        raise PictureError(f'cannot be read ({error}): replace or remove it') from error


def _check_kind(image):
    if image.format != 'MPO' and getattr(image, 'is_animated', False):  # in an MPO, of phones, previews follow the picture
        raise PictureError(f'holds {image.n_frames} frames: give a file per picture')
    if image.mode == 'F' or image.mode == 'I' and image.format not in ('PNG', 'PPM'):
        raise PictureError('holds 32-bit numbers, whose range is not known: convert it to 8 or 16 bits per channel')


def _orientation(image):
    """The EXIF orientation of an opened image, 1 to 8; 1 is upright."""
    if image.format == 'PNG' and image.width == image.height and 'exif' not in image.info:
        return 1  # it may stand behind the pixels; of a square, that is not worth their reading
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _is_deep(image):
    """Whether a picture that is opened and not yet loaded has 16 bits per channel."""
    layouts = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in image.tile]
    return image.mode.startswith('I') or image.format in ('PNG', 'TIFF') and any(';16' in str(layout) for layout in layouts)


def _reduced(image):
    """A picture of 16 bits per channel with the upper 8 of each. Pillow leaves grey as it is, and the transparent colour."""
    key = image.info.get('transparency')
    if not image.mode.startswith('I'):
        if isinstance(key, tuple):
            image.info['transparency'] = tuple(value >> 8 for value in key)
        return image
    values = np.asarray(image)
    if 0 < values.max() < 256:
        raise PictureError('has 16 bits per channel, of which only the lower 8 are used: save it with 8 bits per channel')
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _opaque(image, background):
    if not image.has_transparency_data:
        return image if image.mode == 'RGB' else image.convert('RGB')
    image = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, background), image).convert('RGB')
