"""Where networks run: one way to choose it for every command, and how exactly it multiplies.

float32 means float32 on every device: by default CUDA's convolutions round the factors to ten bits (TF32), which moves
planes by as much as bfloat16 moves pictures. Where less is enough, it is asked for by name: `torch.autocast`.
"""

import contextlib
from collections.abc import Iterator

import torch


LARGE_PICTURE = 256  # pixels along the side, from which networks that draw gain by bfloat16


def find_device(name: str | None = None) -> torch.device:
    """The device of that name; None = the GPU where there is one, else the CPU. From then on nothing in this process
    is rounded to TF32.

    Raises:
        ValueError: there is no such device.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"There is no device {device!r} on this machine; leave --device out.") from None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device(device)


def draws_faster_in_bfloat16(device: torch.device, side: int) -> bool:
    """Whether networks that draw pictures of `side` pixels are faster in bfloat16: where the processor multiplies it,
    and pictures are not small."""
    if device.type == "cpu":
        able = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    else:
        able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return able and side >= LARGE_PICTURE


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """Within it float32 is not rounded to TF32, whatever the program around has chosen."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, was in zip(places, before):
            place.allow_tf32 = was
