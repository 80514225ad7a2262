"""Figures for people: four digits, bytes in their unit, seconds as one says them."""

import math


def four_digits(value: float) -> str:
    """`value` with at most four significant digits, and no exponent where a person needs none."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        digits = 4 - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        text = f"{value:.{max(0, digits)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3e}"


def in_bytes(count: float) -> str:
    """A number of bytes, such as `1.2 MB`: units of thousands."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def in_seconds(seconds: float) -> str:
    """A time, such as `4.2 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
