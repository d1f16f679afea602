"""A user's file -> an upright 8-bit sRGB picture of bounded size, or a `PhotoError` that says why not."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps


# Named one by one: Pillow would also try EPS, which runs Ghostscript on whatever the file says.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

MAX_MEGAPIXELS = 64  # to decode: 4 bytes a pixel, in up to three copies, are .8 of the 2 GB we allow ourselves
MAX_SIDE_PX = 32_000  # OpenCV samples no longer ones
MIN_SIDE_PX = 64  # a face must be that wide (align.MIN_FACE_PX), so a picture must be, too
NEUTRAL = (128, 128, 128)  # what shows through transparent pixels
COLOURS = np.stack(np.meshgrid(*3 * [np.arange(0, 256, 17, dtype=np.uint8)]), -1).reshape(64, 64, 3)  # 16 of each


class PhotoError(ValueError):
    """A photo that cannot be used. `str(error)` is one sentence for the person who chose the photo.

    `reason` is a word for programs: "missing", "empty", "not_an_image", "damaged", "unsupported", "too_large",
    "too_small", "no_face", "face_too_small" or "no_such_face"."""

    def __init__(self, reason: str, sentence: str):
        super().__init__(sentence)
        self.reason = reason


def load_photo(photo: str | Path | bytes | Image.Image) -> Image.Image:
    """Reads a photo (a path, the bytes of a file, or a PIL image) as upright PIL RGB, both sides <= `MAX_SIDE_PX`.

    Turns it by its EXIF orientation; takes the first frame of an animation; converts the colours of its ICC profile to
    sRGB; lays transparency over grey; brings CMYK, palette, grey and 16-bit pictures to 8-bit RGB. A picture over
    `MAX_MEGAPIXELS` (JPEG, which can be decoded small: over 179) is refused by its header, before a pixel is decoded.
    Raises `PhotoError`. A PIL image that was passed in stays as it was."""
    image = photo.copy() if isinstance(photo, Image.Image) else _open(photo)
    # JPEG can be decoded at half its size, with a fraction of the memory; other formats take no notice.
    if image.width * image.height > MAX_MEGAPIXELS * 1e6:
        image.draft(None, (image.width // 2, image.height // 2))
    _check_size(*image.size)

    # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error and more on damaged files; to
    # the user all mean the same.
    try:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        raise PhotoError("damaged", "The picture is damaged or cut short: save or download it again.") from error
    return _to_rgb(image)


def _open(photo: str | Path | bytes) -> Image.Image:
    """Opens the file and reads its header only."""
    if isinstance(photo, bytes):
        source = io.BytesIO(photo)
        head = photo[:12]
    else:
        source = Path(photo)
        if not source.exists():
            raise PhotoError("missing", f"There is no file {str(photo)!r}.")
        if source.is_dir():
            raise PhotoError("missing", f"{str(photo)!r} is a folder, not a picture.")
        try:
            with source.open("rb") as file:
                head = file.read(12)
        except OSError as error:
            raise PhotoError("missing", f"The file {str(photo)!r} cannot be read: {error.strerror}.") from error

    if not head:
        raise PhotoError("empty", "The file is empty (0 bytes).")
    heic = head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS
    if heic:
        from pillow_heif import register_heif_opener  # takes .3 s, and few photos are HEIC

        register_heif_opener(thumbnails=False)
    try:
        with warnings.catch_warnings():
            # Pillow warns at 89 megapixels and refuses at 179; our own limits are other.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(source, formats=(*FORMATS, "HEIF") if heic else FORMATS)
    except Image.DecompressionBombError as error:
        pixels = int(re.search(r"\d+", str(error)).group())
        raise _too_large(pixels) from error
    except (OSError, ValueError, SyntaxError) as error:
        if heic:
            sentence = "The HEIC picture is damaged, or of a kind that cannot be read here: export it as JPEG or PNG."
            raise PhotoError("damaged", sentence) from error
        sentence = (
            "The file is not a picture that can be read here: JPEG, PNG, HEIC, WebP, TIFF, BMP, GIF and AVIF can."
        )
        raise PhotoError("not_an_image", sentence) from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_MEGAPIXELS * 1e6:
        raise _too_large(width * height)
    if min(width, height) < MIN_SIDE_PX:
        raise PhotoError(
            "too_small", f"The picture is {width} x {height} px; {MIN_SIDE_PX} px is the least for either side."
        )


def _too_large(pixels: int) -> PhotoError:
    return PhotoError(
        "too_large",
        f"The picture has {pixels / 1e6:.0f} megapixels; {MAX_MEGAPIXELS} is the most: save a smaller copy.",
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> 8-bit sRGB of bounded size, transparency laid over `NEUTRAL`."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits a pixel, in one of four byte orders, or 16 bits kept in 32
        values = np.asarray(image).astype(np.int32)
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    if image.mode == "F":
        raise PhotoError("unsupported", "Floating-point pictures cannot be read here: save it with 8 bits a channel.")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    image = _reduce(image)
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        # Some rows at a time: a large picture is not in memory thrice.
        for top in range(0, image.height, 1024):
            rows = image.crop((0, top, image.width, min(top + 1024, image.height)))
            image.paste(Image.alpha_composite(Image.new("RGBA", rows.size, NEUTRAL), rows), (0, top))
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_srgb(
    image: Image.Image,  # RGB, RGBA, L or CMYK
    profile: bytes,  # ICC
) -> Image.Image:
    """RGB or RGBA by the profile that came with the picture; as it was where that is for another kind of pixels, or
    broken."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB"):
            return image
        target = image.mode if image.mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), image.mode, target)
        if image.mode == target:
            # Most profiles are sRGB by one of many names, and change nothing.
            sample = Image.fromarray(COLOURS).convert(image.mode)
            changed = np.asarray(ImageCms.applyTransform(sample, transform)) - np.asarray(sample).astype(int)
            if np.abs(changed).max() <= 2:
                return image
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _reduce(image: Image.Image) -> Image.Image:
    """Area-averages a picture larger than `MAX_SIDE_PX` down to it."""
    factor = MAX_SIDE_PX / max(image.size)
    if factor >= 1:
        return image
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BOX)
