"""Image files: found below their root, verified once before the ranks start, loaded as RGB."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from plast_train.errors import UserError
from plast_train.run_folder import sha256_of

# Only what photographs come in: others (EPS) start programs to be drawn.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: 256 MiB as RGB
# Processors scale the short side to a fixed size, so a sliver becomes huge. Qwen2-VL draws the line here too.
MAX_ASPECT = 200


class ImageDefect(ValueError):
    """Why an image cannot be used, and what to do about it."""


class CheckedImage(NamedTuple):
    """An image that can be used. `path` is absolute; `sha256` of the file tells a replaced picture. The file
    has just been read whole and decoded, which takes much longer than hashing it. Its time of change
    would not survive a copy to another machine, where all would be redone."""

    path: Path
    sha256: str


def locate_image(name: str, root: Path) -> Path:
    """The absolute path of image `name` below the folder `root`, symbolic links followed.

    Raises:
        ImageDefect: the path leaves `root`, or is no file.
    """
    try:
        inside = root.resolve()
        path = (inside / name).resolve()
        if not path.is_relative_to(inside):
            raise ImageDefect(f"image '{name}' leaves {root}; move it there or set data.image_root")
        if not path.is_file():
            raise ImageDefect(f"image '{name}' is missing below {root}; add it or set data.image_root")
    except ImageDefect:
        raise
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name no file can have
        raise ImageDefect(f"image '{name}' cannot be found ({error}); fix its path") from None
    return path


def check_image(path: Path) -> None:
    """Decodes the file once, as cheaply as finds every defect; nothing is kept.

    Raises:
        ImageDefect: no image, broken or truncated, of absurd size.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageDefect(f"image {path} has {width}x{height} pixels; scale it below {MAX_PIXELS}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ImageDefect(f"image {path} is {width}x{height}, a sliver; crop it")
            # A JPEG is read to its end all the same, but an eighth of its rows and columns are computed.
            image.draft("L", (1, 1))
            image.load()
    except ImageDefect:
        raise
    except UnidentifiedImageError:
        raise ImageDefect(f"image {path} is none of {', '.join(IMAGE_FORMATS)}; replace it") from None
    except Exception as error:  # Pillow's decoders raise whatever the broken bytes lead them to
        raise ImageDefect(f"image {path} is broken ({error}); replace it") from None


def check_images(images: Iterable[tuple[str, Path]]) -> dict[tuple[str, Path], CheckedImage | ImageDefect]:
    """Locates and checks each distinct `(name, root)` once: the image, or what is wrong with it.

    Threads suffice: Pillow decodes without Python's lock.
    """
    distinct = list(dict.fromkeys(images))
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_image reports it as a defect
        return dict(zip(distinct, pool.map(_located_and_checked, distinct), strict=True))


def load_image(path: str | Path) -> Image.Image:
    """The image as RGB, upright.

    Raises:
        UserError: it can no longer be read.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return to_rgb(image)
    except Exception as error:  # as in check_image
        raise UserError(f"image {path} cannot be read ({error}); was it changed since the start?") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows the image: turned as its EXIF orientation says, transparency over white.

    White, because transparent pictures are drawn for a page; dropping the alpha channel instead shows
    whatever colour is stored beneath it, which turns a black silhouette into a black square.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() alone would clip to white
        return image.convert("I").point(lambda value: value / 257, "L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def store_image(content: bytes, folder: Path) -> str:
    """Writes an image's file content below `folder` under its SHA-256, whole or not at all; its name there.

    Images inside a data set become files this way, so that an image is a path everywhere.
    """
    name = hashlib.sha256(content).hexdigest()
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{name}.{os.getpid()}"
        temporary.write_bytes(content)
        temporary.replace(path)
    return name


def _located_and_checked(image: tuple[str, Path]) -> CheckedImage | ImageDefect:
    try:
        path = locate_image(*image)
        check_image(path)
        return CheckedImage(path, sha256_of(path))
    except ImageDefect as defect:
        return defect
