"""Numbers as people read them, the same on every page, in the terminal and in files: true minus signs, a dash for what
could not be computed, shares in percent and their differences in points."""

from __future__ import annotations

import math

from deepintuit.metrics import Estimate

MINUS, NOTHING = "\u2212", "\u2013"


def number(value: float | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """A number with a true minus; a dash for what could not be computed."""
    if value is None or math.isnan(value):
        return NOTHING
    text = f"{value * scale:{'+' if sign else ''}.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def interval(estimate: Estimate | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """`low–high` (`low to high` where a minus may stand), or nothing where there is none."""
    if estimate is None or math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    low, high = (number(end, scale, digits, sign) for end in (estimate.low, estimate.high))
    return f"{low} to {high}" if sign or estimate.low < 0 else f"{low}\u2013{high}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share of 1 as `57 %`."""
    text = number(share, digits=digits)
    return text if text == NOTHING else f"{text} %"


def with_interval(estimate: Estimate | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """A number with its interval behind it in brackets, where there is one."""
    return number(None if estimate is None else estimate.value, scale, digits, sign) + within(
        estimate, scale, digits, sign
    )


def within(estimate: Estimate | None, scale: float = 100.0, digits: int = 1, sign: bool = False) -> str:
    """The interval in brackets behind a number in a sentence."""
    span = interval(estimate, scale, digits, sign)
    return f" ({span})" if span else ""
