"""Built-in pictures: real images that lie on every disk where this package and its dependencies are installed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from string import ascii_letters

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 32
"""Height and width of every built-in picture, in pixels."""

EVAL_SHARE = 0.15
"""Share of the groups of pictures that is held out."""

_BLOCK, _STRIDE = 64, 16  # pixels of the photographs: what is held out together, and the step between patches
_VARIANTS = 4  # renderings of a letter in one face
_NO_LETTERS = frozenset({"cmex10", "cmsy10", "LastResortHE-Regular"})  # they draw symbols in the places of letters


@dataclass(frozen=True)
class Picture:
    """
    One picture that may become part of a domain.

    Args:
        group (`str`): What is held out together, because its pictures show the same thing.
        label (`str`): Name of its class.
        pixels (`np.ndarray`): Shape (32, 32, 3), type uint8.
    """

    group: str
    label: str
    pixels: np.ndarray


@dataclass(frozen=True)
class PictureSplits:
    """
    A domain in two parts that share no group and no picture; the columns are `image` and `label`.

    Args:
        train (`datasets.Dataset`): Training part.
        eval (`datasets.Dataset`): Held-out part.
        fingerprint (`str`): SHA-256 over the pixels and labels of both parts, in hexadecimal.
    """

    train: datasets.Dataset
    eval: datasets.Dataset
    fingerprint: str


def picture_names() -> tuple[str, ...]:
    """
    Names of the built-in domains.

    Example:

    ```python
    >>> picture_names()
    ('digits', 'glyphs', 'photos')

    ```
    """
    return tuple(sorted(_DOMAINS))


@functools.cache
def load_pictures(name: str) -> PictureSplits:
    """
    Loads a built-in domain of 32x32 RGB pictures: the same pixels for the same versions of the dependencies.

    - `digits`: the 1,797 handwritten digits of scikit-learn, 8x8 grey levels scaled up; a digit is a group;
    - `glyphs`: the 52 Latin letters in the text faces that matplotlib ships, in several sizes, places and colours;
      a letter in one face is a group, the letter its class;
    - `photos`: overlapping patches of the two photographs that scikit-learn ships, and their surroundings at half the
      scale; a block of 64x64 pixels is a group, the photograph the class.

    A hash of a group's name decides its part, and another one the order.

    Args:
        name (`str`): One of [`picture_names`].

    Returns:
        [`PictureSplits`]: Both parts.

    Raises:
        `ValueError`: If the name is unknown.

    Example:

    ```python
    >>> load_pictures("digits").train.features["label"].names
    ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']

    ```
    """
    if name not in _DOMAINS:
        raise ValueError(f"builtin {name!r} is no built-in set of pictures; there are {', '.join(picture_names())}.")
    parts: dict[bool, list[Picture]] = {False: [], True: []}
    seen: set[bytes] = set()
    # Held-out groups come first, so that pixels that occur in two groups never train what they score.
    for picture in sorted(_DOMAINS[name](), key=lambda picture: not _is_held_out(picture.group)):
        pixels = picture.pixels.tobytes()
        if pixels not in seen:
            seen.add(pixels)
            parts[_is_held_out(picture.group)].append(picture)
    digest = hashlib.sha256()
    for held_out, pictures in parts.items():
        pictures.sort(key=lambda picture: hashlib.blake2b(picture.pixels.tobytes()).digest())
        for picture in pictures:
            digest.update(f"\0{held_out}\0{picture.label}\0".encode() + picture.pixels.tobytes())
    labels = sorted({picture.label for picture in (*parts[False], *parts[True])})
    return PictureSplits(_dataset(parts[False], labels), _dataset(parts[True], labels), digest.hexdigest())


def png(pixels: np.ndarray) -> bytes:
    """
    A picture as the bytes of a PNG file.

    Args:
        pixels (`np.ndarray`): Shape (height, width, 3) or (height, width), type uint8.
    """
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _dataset(pictures: list[Picture], labels: list[str]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    images = [{"bytes": png(picture.pixels), "path": None} for picture in pictures]
    return datasets.Dataset.from_dict({"image": images, "label": [p.label for p in pictures]}, features=features)


def _is_held_out(group: str) -> bool:
    return _draw("part", group)[0] < EVAL_SHARE * 2**32


def _draw(*key: object) -> np.ndarray:
    """Eight numbers below 2^32 that depend on nothing but the key."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=32).digest()
    return np.frombuffer(digest, "<u4").astype(np.int64)


def _digits() -> Iterator[Picture]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images.reshape(-1, 8, 8), labels, strict=True)):
        grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        yield Picture(f"digits/{number}", str(label), np.asarray(grey.convert("RGB")))


def _glyphs() -> Iterator[Picture]:
    for path in _text_faces():
        for letter in ascii_letters:
            group = f"{path.stem}/{letter}"
            for variant in range(_VARIANTS):
                yield Picture(group, letter, _glyph(path, letter, _draw(group, variant)))


def _text_faces() -> list[Path]:
    """The fonts of matplotlib that draw all letters."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    needed = set(map(ord, ascii_letters))
    files = sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"))
    return [file for file in files if file.stem not in _NO_LETTERS and needed <= set(FT2Font(str(file)).get_charmap())]


def _glyph(path: Path, letter: str, draw: np.ndarray) -> np.ndarray:
    """A letter of 20 to 27 pixels, moved by up to 3 pixels, in a light colour on a dark one."""
    font = _font(path, 20 + int(draw[0] % 8))
    paper, ink = [int(n) for n in draw[1:4] % 64], [int(n) for n in 255 - draw[4:7] % 64]
    image = Image.new("RGB", (SIZE, SIZE), tuple(paper))
    middle = (SIZE / 2 + int(draw[7] % 7) - 3, SIZE / 2 + int(draw[7] // 7 % 7) - 3)
    left, top, right, bottom = font.getbbox(letter)
    place = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
    ImageDraw.Draw(image).text(place, letter, font=font, fill=tuple(ink))
    return np.asarray(image)


@functools.cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    # Raqm, where it is installed, would lay text out in another way than the basic engine that is always there.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _photos() -> Iterator[Picture]:
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images()
    for file, photograph in zip(photographs.filenames, photographs.images, strict=True):
        name = Path(file).stem
        for row in range(0, photograph.shape[0] - _BLOCK + 1, _BLOCK):
            for column in range(0, photograph.shape[1] - _BLOCK + 1, _BLOCK):
                block = photograph[row : row + _BLOCK, column : column + _BLOCK]
                for pixels in _patches(block):
                    yield Picture(f"{name}/{row}/{column}", name, pixels)


def _patches(block: np.ndarray) -> Iterator[np.ndarray]:
    for row in range(0, _BLOCK - SIZE + 1, _STRIDE):
        for column in range(0, _BLOCK - SIZE + 1, _STRIDE):
            yield np.ascontiguousarray(block[row : row + SIZE, column : column + SIZE])
    yield np.asarray(Image.fromarray(block).resize((SIZE, SIZE), Image.Resampling.BOX))


_DOMAINS: dict[str, Callable[[], Iterator[Picture]]] = {"digits": _digits, "glyphs": _glyphs, "photos": _photos}
