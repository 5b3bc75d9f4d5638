from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from detcli.data import load_image
from detcli.data.images import read_header, upright_size
from detcli.errors import DetcliError


@pytest.fixture
def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC))


def saved(path: Path, image: Image.Image, format: str, **options: object) -> Path:
    image.save(path, format, **options)
    return path


def test_colour_order_is_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(picture), "PNG")
    assert np.array_equal(load_image(path), picture)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_format_is_read_as_pillow_reads_it(tmp_path: Path, picture: np.ndarray, format: str, mode: str) -> None:
    path = saved(tmp_path / "a", Image.fromarray(picture).convert(mode), format)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(load_image(path) - expected).max() <= 1


def test_cmyk_jpeg_is_read_as_rgb(tmp_path: Path, picture: np.ndarray) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(load_image(path).astype(int) - picture).mean() < 4


def test_alpha_is_dropped(tmp_path: Path, picture: np.ndarray) -> None:
    alpha = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (60, 1))
    path = saved(tmp_path / "a.png", Image.fromarray(np.dstack([picture, alpha])), "PNG")
    assert np.array_equal(load_image(path), picture)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_become_8_within_a_level(tmp_path: Path, channels: int, suffix: str) -> None:
    values = (np.arange(60 * 80).reshape(60, 80) * 13).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), values if channels == 1 else np.dstack([values] * channels))
    image = load_image(path)
    assert image.shape == (60, 80, 3)
    assert np.abs(image - values[..., None] / 257).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, picture: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", Image.fromarray(picture), "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    image = load_image(path)
    assert np.array_equal(image, expected)
    stored, found = read_header(path)
    assert (stored, found) == ((60, 80), orientation)
    assert upright_size(stored, found) == image.shape[:2]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.97])
def test_file_that_is_cut_short_is_refused(tmp_path: Path, format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    whole = io.BytesIO()
    Image.fromarray(noise).save(whole, format)
    path = tmp_path / "cut"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(DetcliError, match="cut"):
        load_image(path)


def test_bytes_after_the_end_are_no_harm(tmp_path: Path, picture: np.ndarray) -> None:
    for format in ("JPEG", "PNG"):
        path = saved(tmp_path / "a", Image.fromarray(picture), format)
        clean = load_image(path)
        path.write_bytes(path.read_bytes() + b"\xff\xda and more" * 20)
        assert np.array_equal(load_image(path), clean)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no_picture.jpg"
    path.write_bytes(content)
    with pytest.raises(DetcliError, match=r"no_picture\.jpg") as error:
        load_image(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetcliError, match=r"absent\.png: No such file"):
        load_image(tmp_path / "absent.png")
