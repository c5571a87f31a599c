"""Numbers and foreign text as a reader should see them: nothing hidden, nothing rounded into a stronger claim."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NO_BREAK = "\u00a0"
_JOINERS = "\u200c\u200d"  # format characters that ordinary words in some scripts need


def encodable(text: str) -> str:
    """The text with what UTF-8 cannot carry (bytes of a name that were no text) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: object, limit: int = 160) -> str:
    """Foreign text with control and direction characters written as escapes, its middle cut where it is too long.

    A name such as "cat\\u202egpj.exe" would otherwise show the reader another name than the one in the file.
    """
    shown = "".join(_shown(character) for character in encodable(str(text)))
    if len(shown) <= limit:
        return shown
    half = (limit - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    return f"\\u{ord(character):04x}" if hidden else character


def count(number: int) -> str:
    return f"{number:,}"


def plural(number: int, noun: str, several: str | None = None) -> str:
    return f"{count(number)}{NO_BREAK}{noun if number == 1 else several or noun + 's'}"


def percent(share: float) -> str:
    """A share as a percentage: two significant digits next to 0 and next to 100, one decimal between."""
    return f"{_trimmed(_hundredths(share))}{NO_BREAK}%"


def interval(low: float, high: float) -> str:
    """Two shares as one interval in per cent."""
    return f"{_trimmed(_hundredths(low))} to {percent(high)}"


def percent_cell(share: float) -> str:
    """A percentage for a column, which keeps its zeros so that the decimals align."""
    return f"{_hundredths(share)}{NO_BREAK}%"


def interval_cell(low: float, high: float) -> str:
    return f"{_hundredths(low)} to {percent_cell(high)}"


def _hundredths(share: float) -> str:
    if not math.isfinite(share):
        return "–"
    hundred = 100 * share
    distance = min(abs(hundred), abs(100 - hundred))
    if distance < 1e-9:
        return f"{hundred:.0f}"
    decimals = 1 if distance >= 1 else 1 - math.floor(math.log10(distance))
    return f"{hundred:.{min(decimals, 6)}f}"


def _trimmed(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def figure(value: float, digits: int = 4) -> str:
    """A number in its own unit, to so many significant digits."""
    if not math.isfinite(value):
        return "–"
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return mantissa if not exponent else f"{mantissa}{NO_BREAK}×{NO_BREAK}10{_superscript(int(exponent))}"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}{NO_BREAK}h"] if hours else []
    return " ".join([*parts, f"{minutes}{NO_BREAK}min", f"{rest}{NO_BREAK}s"])


def plain(value: Any) -> Any:
    """The value as JSON can carry it: numpy's scalars as Python's, what is not finite as null, text as UTF-8 has it."""
    if isinstance(value, Mapping):
        return {encodable(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Sequence):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rounded(value: float, digits: int = 6) -> float | None:
    """To `digits` significant digits; null where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
