"""Images: found below their root, every defect seen, shown as a viewer shows them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plast_train.data import images
from plast_train.data.images import ImageDefect, check_image, check_images, load_image, locate_image
from plast_train.errors import UserError
from plast_train.run_folder import sha256_of


def defect(path: Path) -> str:
    with pytest.raises(ImageDefect) as caught:
        check_image(path)
    return str(caught.value)


def test_real_images_load_as_rgb_of_their_size(shared: Path) -> None:
    folder = shared / "data" / "images"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert {entry["mode"] for entry in manifest} == {"RGB", "L", "RGBA"}
    for entry in manifest:
        path = folder / entry["file"]
        check_image(path)
        image = load_image(path)
        assert (image.mode, list(image.size)) == ("RGB", entry["size"])
        with Image.open(path) as original:
            pixels = np.asarray(original.convert("RGBA")).astype(float)
        alpha = pixels[..., 3:] / 255
        over_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(np.asarray(image) - over_white).max() <= 1


@pytest.mark.parametrize("removed", [1, 2, 20, 5000])
def test_a_truncated_photograph_is_found(shared: Path, tmp_path: Path, removed: int) -> None:
    content = (shared / "data" / "images" / "cat.jpg").read_bytes()
    (tmp_path / "cat.jpg").write_bytes(content[:-removed])
    assert "truncated" in defect(tmp_path / "cat.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_formats_whole_and_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    check_image(path)
    assert load_image(path).size == (60, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "is broken" in defect(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("not an image", encoding="utf-8")
    assert "is none of JPEG, PNG" in defect(path)
    path.write_bytes(b"")
    assert "is none of JPEG, PNG" in defect(path)
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", encoding="utf-8")
    assert "is none of JPEG, PNG" in defect(path)  # Pillow would start Ghostscript on it


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 9_000)).save(path)  # 12 kB that would unfold to 270 MB
    assert "10000x9000 pixels" in defect(path)
    Image.new("1", (14_000, 13_000)).save(path)
    assert "broken" in defect(path) and "decompression bomb" in defect(path)
    Image.new("RGB", (201, 1)).save(path)
    assert "201x1, a sliver" in defect(path)
    Image.new("RGB", (200, 1)).save(path)
    check_image(path)


def test_an_image_leaves_its_root_by_no_way(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-beside"
    root.mkdir()
    outside.mkdir()
    for folder in (root, outside):
        Image.new("RGB", (8, 8)).save(folder / "a.png")
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "inner.png").symlink_to("a.png")
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe.png")
    for name in ("../root-beside/a.png", str(outside / "a.png"), "link.png", "folder/a.png"):
        with pytest.raises(ImageDefect, match="leaves"):
            locate_image(name, root)
    for name in ("none.png", "", ".", "pipe.png", "a.png/b"):
        with pytest.raises(ImageDefect, match="is missing"):
            locate_image(name, root)
    for name in ("a\0.png", "a" * 5000, "loop.png"):
        with pytest.raises(ImageDefect, match="cannot be found"):
            locate_image(name, root)
    for name in ("a.png", "./a.png", "inner.png", "../root/a.png", str(root / "a.png")):
        assert locate_image(name, root) == root / "a.png"
    (tmp_path / "other").symlink_to(root)  # the root itself may be a link
    assert locate_image("a.png", tmp_path / "other") == root / "a.png"


def test_each_image_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    checked: list[Path] = []
    original = images.check_image

    def counted(path: Path) -> None:
        checked.append(path)
        original(path)

    monkeypatch.setattr(images, "check_image", counted)
    found = check_images([("a.png", tmp_path), ("b.png", tmp_path)] * 50)
    assert sorted(checked) == [tmp_path / "a.png", tmp_path / "b.png"]
    assert found["a.png", tmp_path] == (tmp_path / "a.png", sha256_of(tmp_path / "a.png"))
    assert isinstance(found["b.png", tmp_path], ImageDefect)


def test_modes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    ramp = (np.arange(65536) % 65536).astype(np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(path)  # 16-bit grey: its high byte, not clipped to white
    shown = np.asarray(load_image(path)).astype(int)
    assert np.abs(shown - (ramp / 257)[..., None]).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(path)
    assert list(np.asarray(load_image(path)).reshape(-1)) == [255, 0, 0, 0, 0, 255]
    palette.save(path, transparency=1)
    assert list(np.asarray(load_image(path)).reshape(-1)) == [255, 0, 0, 255, 255, 255]
    Image.new("LA", (1, 1), (0, 51)).save(path)  # a fifth of black over white
    assert load_image(path).getpixel((0, 0)) == (204, 204, 204)


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    image.save(path, exif=exif)
    upright = load_image(path)
    assert upright.size == (1, 2)
    assert upright.getpixel((0, 0)) == (255, 0, 0)


def test_an_image_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_image(tmp_path / "a.png")
