"""photo.py: any file becomes an upright RGB picture or one sentence."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageOps

from preim3d.photo import MAX_SIDE_PX, NEUTRAL, PhotoError, load_photo


CASES = Path(__file__).parents[2] / "shared" / "cases"
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


def test_only_huge_is_reduced():
    """A panorama keeps its pixels, and so its faces."""
    assert load_photo(encode(Image.new("RGB", (12000, 1500), (10, 200, 30)), "JPEG")).size == (12000, 1500)
    assert load_photo(encode(Image.new("RGB", (10000, 8000)), "JPEG")).size == (5000, 4000)
    assert load_photo(encode(Image.new("L", (MAX_SIDE_PX + 8000, 500)), "PNG")).size == (MAX_SIDE_PX, 400)


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
    assert reason == "damaged" and "HEIC" in words and "JPEG" in words
    assert reason_and_words(tmp_path / "none.jpg")[0] == "missing"
    assert reason_and_words(tmp_path)[0] == "missing"
    (tmp_path / "empty.jpg").touch()
    assert reason_and_words(str(tmp_path / "empty.jpg"))[0] == "empty"


# ---------------------------------------------------------------------------------------------------------------------
# Colours.


def wide_profile(primaries: dict[bytes, tuple[float, float, float]], gamma: float = 1.8) -> bytes:
    """An ICC profile (version 2) of these primaries in D50, as the standard lays it out."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    tags = {name: b"XYZ \0\0\0\0" + b"".join(map(number, xyz)) for name, xyz in primaries.items()}
    tags[b"wtpt"] = b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1.0, 0.8249)))
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"wide\0" + bytes(81)
    tags[b"cprt"] = b"text\0\0\0\0none\0\0\0\0"
    place, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", place + len(content), len(tag))
        content += tag
    head = bytearray(128)
    head[8:12], head[12:24], head[36:40] = b"\x02\x40\0\0", b"mntrRGB XYZ ", b"acsp"
    head[68:80] = b"".join(map(number, (0.9642, 1.0, 0.8249)))
    head[:4] = struct.pack(">I", place + len(content))
    return bytes(head) + table + content


# Columns of the standards' matrices from linear RGB to XYZ, brought to D50.
DISPLAY_P3 = {b"rXYZ": (0.5151, 0.2412, -0.0011), b"gXYZ": (0.292, 0.6922, 0.0419), b"bXYZ": (0.1571, 0.0666, 0.7841)}
PROPHOTO = {b"rXYZ": (0.7977, 0.288, 0.0), b"gXYZ": (0.1352, 0.7119, 0.0), b"bXYZ": (0.0313, 0.0001, 0.8249)}
ADOBE_RGB = {b"rXYZ": (0.6097, 0.3111, 0.0195), b"gXYZ": (0.2053, 0.6257, 0.0609), b"bXYZ": (0.1492, 0.0632, 0.7446)}
SRGB = {b"rXYZ": (0.4361, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}


def as_profile_has_it(pixels: np.ndarray, primaries: dict, gamma: float) -> np.ndarray:
    """sRGB -> the numbers that the profile has for the same colours, by the standards' formulas."""
    x = pixels / 255.0
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array(list(SRGB.values()))
    own = np.clip(xyz @ np.linalg.inv(np.array(list(primaries.values()))), 0, 1)
    return (255 * own ** (1 / gamma)).round().astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "HEIF"])
@pytest.mark.parametrize("primaries, gamma", [(DISPLAY_P3, 2.2), (PROPHOTO, 1.8), (ADOBE_RGB, 2.2)])
def test_colours_of_a_profile_become_srgb(primaries, gamma, kind):
    smooth = np.asarray(Image.fromarray(PIXELS[::25, ::28]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    stored = Image.fromarray(as_profile_has_it(smooth, primaries, gamma))
    quality = {"subsampling": 0} if kind == "JPEG" else {"chroma": 444} if kind == "HEIF" else {}
    options = {"icc_profile": wide_profile(primaries, gamma), "quality": 100, **quality}
    photo = load_photo(encode(stored, kind, **options, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.abs(np.asarray(photo).astype(int) - smooth).mean() < 2
    assert np.abs(np.asarray(stored).astype(int) - smooth).mean() > 6  # what it was without


def test_colours_of_the_case_become_srgb():
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    import skimage.data

    difference = np.asarray(load_photo(CASES / "icc_prophoto.jpg")).astype(int) - skimage.data.astronaut()
    # Single pixels have JPEG's noise, 2.2 of 255.
    assert np.abs(difference.reshape(64, 8, 64, 8, 3).mean((1, 3))).mean() < 1
    assert np.abs(difference).mean() < 2.5


def test_transparency_stays_where_a_profile_is():
    rgba = picture("RGBA")
    rgba.putalpha(0)
    profile = wide_profile(PROPHOTO)
    assert load_photo(encode(rgba, "PNG", icc_profile=profile)).getpixel((3, 3)) == NEUTRAL
    rgba.putalpha(255)
    opaque = load_photo(encode(picture(), "PNG", icc_profile=profile))
    assert np.array_equal(np.asarray(load_photo(encode(rgba, "PNG", icc_profile=profile))), np.asarray(opaque))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA"])
def test_a_profile_that_changes_nothing_or_makes_no_sense_is_left_out(mode):
    """sRGB's own, a broken one, and one for pixels of another kind."""
    plain = load_photo(encode(picture(mode), "PNG"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, srgb[:200], b"no profile", *([wide_profile(PROPHOTO)] if mode == "L" else [])):
        assert np.array_equal(np.asarray(load_photo(encode(picture(mode), "PNG", icc_profile=profile))), plain)


# ---------------------------------------------------------------------------------------------------------------------
# HEIC.


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic(orientation):
    pillow_heif.register_heif_opener()
    smooth = Image.fromarray(PIXELS[::25, ::28]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(with_exif(smooth, exif))).astype(int)
    photo = load_photo(encode(smooth, "HEIF", quality=95, chroma=444, exif=exif.tobytes()))
    assert photo.mode == "RGB" and np.abs(np.asarray(photo) - upright).mean() < 3


def with_exif(image: Image.Image, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encode(image, "PNG", exif=exif)))


def test_heic_that_is_damaged_or_too_large(monkeypatch):
    pillow_heif.register_heif_opener()
    whole = encode(picture(), "HEIF")
    assert reason_and_words(whole[:2000])[0] == "damaged"
    monkeypatch.setattr("preim3d.photo.MAX_MEGAPIXELS", 0.01)
    assert reason_and_words(whole)[0] == "too_large"
