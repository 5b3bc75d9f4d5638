"""Pictures from files, always as upright 8-bit RGB."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from detcli.errors import DetcliError

Pixels = NDArray[np.uint8]

ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""

# Otherwise OpenCV prints lines of its own about each file that it can't read, beside our error.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, or 5
_set_log_level(0)


def load_image(path: str | os.PathLike[str]) -> Pixels:
    """Read a picture: uint8 [H,W,3] RGB, turned upright as its EXIF orientation says.

    Grey is repeated, CMYK converted, 16 bits become 8, alpha is dropped. Raises `DetcliError`
    naming the file when it can't be read, is cut short, or is no picture.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DetcliError(f"can't read the picture {path}: {error.strerror or error}.") from None
    image = _decode(data) if _is_whole(data) else None
    return _decode_with_pillow(data, path) if image is None else image


def read_header(path: str | os.PathLike[str]) -> tuple[tuple[int, int], int]:
    """Return (height, width) of the stored picture and its EXIF orientation (1 to 8); decodes no pixels.

    Raises `DetcliError` naming the file when it can't be read or is no picture.
    """
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            return (image.height, image.width), orientation if orientation in range(1, 9) else 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DetcliError(f"can't read the picture {path}: {_reason(error)}.") from None


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the (height, width) that a stored picture of `size` has once it is turned upright."""
    return (size[1], size[0]) if orientation in TURNED else size


def _decode(data: bytes) -> Pixels | None:
    """Return the picture, or None where OpenCV can't decode it."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image), np.uint8)


def _is_whole(data: bytes) -> bool:
    """Say whether a JPEG or PNG has its end marker; other formats always pass.

    OpenCV may fill the rest of a file that is cut short with grey and say nothing. A JPEG's end marker after
    the last start of a scan can't be pixel data, in which 0xFF is always followed by 0.
    """
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    return bool(data)


def _decode_with_pillow(data: bytes, path: str | os.PathLike[str]) -> Pixels:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("I", "F"):
                raise ValueError("its pixels are 32-bit numbers, for which there is no scale to RGB")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DetcliError(f"can't decode the picture {path}: {_reason(error)}.") from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, corrupt, or no picture"
    return str(getattr(error, "strerror", None) or error)
