"""What a person asks for, checked: `smile=2` as {"smile": 2.0}, which face. No torch: a mistake is told at once."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping


STRENGTH_LIMIT = 10.0  # the range of the reference demo; far outside it, w leaves the space that the generator knows


def check_face(face: int) -> int:
    """Which face of a photo is meant, as a whole number from 1, the largest; a program may send 1.0.

    Raises:
        ValueError: it is none.
    """
    if isinstance(face, bool) or not isinstance(face, numbers.Real) or not 1 <= face < math.inf or face != int(face):
        raise ValueError(f"`face` counts from 1, the largest face, so it cannot be {face!r}.")
    return int(face)


def parse_strengths(words: Iterable[str]) -> dict[str, float]:
    """`["smile=2", "age=-1"]` -> `{"smile": 2.0, "age": -1.0}`.

    Raises:
        ValueError: a word without `=`, a strength that is not a number, or an attribute set twice.
    """
    strengths = {}
    for word in words:
        name, equals, number = (part.strip() for part in word.partition("="))
        if not (name and equals and number):
            raise ValueError(f"`{word}` is not of the form NAME=STRENGTH; write for example smile=2.")
        if name in strengths:
            raise ValueError(f"`{name}` is set twice; give each attribute one strength.")
        try:
            strengths[name] = float(number)
        except ValueError:
            raise ValueError(f"The strength of `{name}` must be a number, not `{number}`.") from None
    return strengths


def check_strengths(strengths: Mapping[str, float], known: Iterable[str]) -> dict[str, float]:
    """The same strengths as floats, all of known attributes and within -10..10.

    Args:
        strengths: in standard deviations of each attribute's classifier logit; 0 changes nothing.
        known: the names that the weights have directions for.

    Raises:
        ValueError: one sentence with what was given, what is allowed, and the nearest known name.
    """
    known = list(known)
    checked = {}
    for name, strength in strengths.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{near[0]}`? The" if near else "the"
            raise ValueError(f"`{name}` is no attribute of these weights; {hint} known ones are {', '.join(known)}.")
        try:
            number = float(strength)
        except (TypeError, ValueError, OverflowError):  # the last of an integer of hundreds of digits
            raise ValueError(f"The strength of `{name}` must be a number, not `{str(strength)[:40]}`.") from None
        if not math.isfinite(number) or abs(number) > STRENGTH_LIMIT:
            raise ValueError(
                f"The strength of `{name}` must lie in {-STRENGTH_LIMIT:g}..{STRENGTH_LIMIT:g}, not `{strength}`."
            )
        checked[name] = number
    return checked
