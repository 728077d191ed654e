"""Images of benchmark items: base64 cells, bytes inside a data set, files; each decoded once when read."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image

from plast_train.data.images import FORMATS, ImageDefect, check_image, locate_image
from plast_train.errors import UserError


def image_of_base64(where: str, cell: str) -> bytes:
    """The image file that a table's cell holds. Raises UserError for what is no base64 or no image."""
    try:
        data = base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise UserError(
            f"{where}: image {cell[:20]!r}… is not base64 ({error}); encode the file anew"
        ) from error
    return verified_image(where, data, repr(cell[:20]))


def verified_image(where: str, data: bytes, shown: str) -> bytes:
    """The bytes themselves, which decode; `shown` names them in the message of the UserError if not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.open(io.BytesIO(data), formats=FORMATS).load()
    except Exception as error:  # Pillow raises many kinds on broken data, each of them the file's fault
        raise UserError(
            f"{where}: image {shown}… cannot be decoded ({error}); "
            "replace it by a whole PNG or JPEG of usual size"
        ) from error
    return data


def image_of_file(where: str, name: str, root: Path) -> bytes:
    """The file `name` below `root`. Raises UserError for one that is missing, outside, or no image."""
    try:
        return _checked_file(name, root)
    except ImageDefect as defect:
        raise UserError(f"{where}: {defect}") from None


@lru_cache(maxsize=4096)  # several questions about an image, and several languages, share one object
def _checked_file(name: str, root: Path) -> bytes:
    path = locate_image(name, root)
    check_image(path)
    return path.read_bytes()
