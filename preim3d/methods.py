"""The ways to find the head of a photo, by name, and what may be asked of them. No torch: mistakes are told soon."""

from typing import Literal, get_args


Method = Literal["encoder", "latent", "pti", "hybrid"]  # see `preim3d.inversion`
METHODS = get_args(Method)


def check_method(method: str, steps: int | None, seconds: float | None) -> None:
    """Raises ValueError, a sentence, for what cannot be asked for."""
    if method not in METHODS:
        raise ValueError(f"`inversion` must be one of {', '.join(METHODS)}, not `{method}`.")
    for name, most in (("steps", steps), ("seconds", seconds)):
        if most is None:
            continue
        if method == "encoder":
            raise ValueError(
                f"`{name}` are for slower inversions; give `inversion` as one of {', '.join(METHODS[1:])}."
            )
        if not most > 0 or (name == "steps" and most != int(most)):
            whole = "a whole number" if name == "steps" else "a number"
            raise ValueError(f"`{name}` must be {whole} greater than 0, not {most}.")
