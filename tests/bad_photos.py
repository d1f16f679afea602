"""Forty and more files that are no usable portrait, by the name they are uploaded under."""

import io
import json
import secrets
import struct
import zlib

from PIL import Image


def picture(mode: str, format: str, size=(200, 200), **options) -> bytes:
    with io.BytesIO() as buffer:
        Image.new(mode, size).save(buffer, format, **options)
        return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims more pixels than it has."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


JPEG, PNG = picture("RGB", "JPEG"), picture("RGB", "PNG")
BAD = {
    **{f"faceless-{mode}.png": picture(mode, "PNG") for mode in ("RGB", "L", "RGBA", "P", "LA", "1", "I;16")},
    **{f"faceless-{f}.{f}": picture("RGB", f) for f in ("jpeg", "webp", "gif", "bmp", "tiff", "ppm")},
    "cmyk.jpg": picture("CMYK", "JPEG"),
    "float.tiff": picture("F", "TIFF"),
    "dot.png": picture("RGB", "PNG", (1, 1)),
    "line.png": picture("RGB", "PNG", (500, 1)),
    "column.png": picture("RGB", "PNG", (1, 500)),
    "small.jpg": picture("RGB", "JPEG", (63, 63)),
    "wide.png": picture("RGB", "PNG", (6000, 70)),
    "empty.jpg": b"",
    "zeros.jpg": bytes(1000),
    "noise.jpg": secrets.token_bytes(1000),
    "text.jpg": b"no picture at all",
    "page.png": b"<html><script>alert(1)</script></html>",
    "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "paper.pdf": b"%PDF-1.7\n",
    "postscript.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "archive.zip": b"PK\x03\x04" + bytes(40),
    "program.exe": b"MZ" + bytes(100),
    "phone.heic": b"\0\0\0\x18ftypheic" + bytes(20),
    "film.mp4": b"\0\0\0\x18ftypisom" + bytes(20),
    "cut.jpg": JPEG[: len(JPEG) // 3],
    "cut.png": PNG[: len(PNG) // 2],
    "head-only.jpg": JPEG[:4],
    "head-only.png": PNG[:8],
    "bomb.png": bomb(60_000, 60_000),
    "bomb-high.png": bomb(64, 2_000_000),
    "bomb-zero.png": bomb(0, 0),
    "swapped.png": PNG[:30] + bytes(20) + PNG[50:],
    "pickle.jpg": b"\x80\x04\x95" + bytes(30),
    "json.jpg": json.dumps({"path": "/etc/passwd"}).encode(),
}
