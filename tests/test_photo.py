"""photo.py: any file becomes an upright RGB picture or one sentence."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from preim3d.photo import MAX_SIDE_PX, NEUTRAL, PhotoError, load_photo


WIDTH, HEIGHT = 140, 100
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(PIXELS).convert(mode)


def reason_and_words(photo) -> tuple[str, str]:
    with pytest.raises(PhotoError) as caught:
        load_photo(photo)
    words = str(caught.value)
    assert "\n" not in words and words.endswith("."), words
    return caught.value.reason, words


@pytest.mark.parametrize(
    "mode, kind",
    [(mode, kind) for mode in ("RGB", "L", "1", "P") for kind in ("PNG", "TIFF")]
    + [("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "GIF"), ("RGB", "AVIF"), ("RGB", "PPM")]
    + [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")],
)
def test_modes_and_formats(mode, kind):
    photo = load_photo(encode(picture(mode), kind))
    assert (photo.mode, photo.size) == ("RGB", (WIDTH, HEIGHT))


def test_lossless_rgb_is_kept_exactly():
    assert np.array_equal(np.asarray(load_photo(encode(picture(), "PNG"))), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, kind):
    """A picture whose top left quarter is white when upright, stored in each of the eight ways."""
    upright = np.zeros((100, 140), np.uint8)
    upright[:50, :70] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = load_photo(encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert photo.size == (140, 100)
    assert np.abs(np.asarray(photo)[..., 0].astype(int) - upright).mean() < 10  # JPEG and WebP lose a little


def test_sixteen_bits():
    high = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(load_photo(encode(high, kind)))[..., 1], PIXELS[..., 0])


def test_transparency_shows_neutral_grey():
    rgba = picture("RGBA")
    rgba.putalpha(0)
    assert load_photo(encode(rgba, "PNG")).getpixel((3, 3)) == NEUTRAL
    palette = picture().quantize(16)
    hidden = palette.getpixel((3, 3))
    assert load_photo(encode(palette, "PNG", transparency=hidden)).getpixel((3, 3)) == NEUTRAL


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (80, 80), color) for color in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        photo = load_photo(encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True))
        assert photo.getpixel((40, 40)) == (255, 0, 0) or kind == "WEBP" and photo.getpixel((40, 40))[0] > 240


def test_pil_image_is_left_as_it_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.jpg", exif=exif)
    image = Image.open(tmp_path / "a.jpg")
    assert load_photo(image).size == (HEIGHT, WIDTH)
    assert image.size == (WIDTH, HEIGHT) and image.getexif()[0x0112] == 6


def test_large_is_reduced():
    photo = load_photo(encode(Image.new("RGB", (9000, 900), (10, 200, 30)), "JPEG"))
    assert photo.width <= MAX_SIDE_PX and abs(photo.width / photo.height - 10) < 0.1
    assert load_photo(encode(Image.new("L", (5000, 500)), "PNG")).size == (MAX_SIDE_PX, 410)


def test_too_large_is_refused_by_its_header():
    # 113 kB of file, 900 megapixels of picture.
    assert reason_and_words(encode(Image.new("1", (30000, 30000)), "PNG")) == (
        "too_large",
        "The picture has 900 megapixels; 64 is the most: save a smaller copy.",
    )
    reason, words = reason_and_words(encode(Image.new("1", (12000, 10000)), "PNG"))
    assert reason == "too_large" and "120 megapixels" in words


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from Linux's /proc")
def test_the_largest_allowed_needs_bounded_memory(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGBA", (8000, 7900), (200, 100, 50, 128)).save(path, compress_level=1)
    code = f"from preim3d.photo import load_photo; load_photo({str(path)!r}); print(open('/proc/self/status').read())"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    (peak_kb,) = [int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("VmHWM")]
    assert peak_kb < 900_000


def test_too_small():
    assert reason_and_words(encode(Image.new("RGB", (1, 1)), "PNG")) == (
        "too_small",
        "The picture is 1 x 1 px; 64 px is the least for either side.",
    )
    assert reason_and_words(encode(Image.new("RGB", (30000, 40)), "PNG"))[0] == "too_small"


def test_damaged():
    whole = encode(picture(), "JPEG", quality=95)
    assert reason_and_words(whole[: len(whole) // 2])[0] == "damaged"
    assert reason_and_words(encode(picture(), "PNG")[:3000])[0] == "damaged"


def test_not_a_picture(tmp_path):
    assert reason_and_words(b"")[0] == "empty"
    assert reason_and_words(b"hello, this is text")[0] == "not_an_image"
    assert reason_and_words(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")[0] == "not_an_image"
    reason, words = reason_and_words(b"\x00\x00\x00\x18ftypheic" + bytes(64))
    assert reason == "unsupported" and "HEIC" in words
    assert reason_and_words(tmp_path / "none.jpg")[0] == "missing"
    assert reason_and_words(tmp_path)[0] == "missing"
    (tmp_path / "empty.jpg").touch()
    assert reason_and_words(str(tmp_path / "empty.jpg"))[0] == "empty"
