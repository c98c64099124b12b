"""The learning rate as text, for a terminal."""

from collections.abc import Iterator

from hf_infinite_lr.announcement import format_rate
from hf_infinite_lr.plots.curve import BRANCH, Curve, fitting_labels

_MARGIN = 9
"""Characters left of the axis, for the rates."""
_BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a braille character, by row and column (Unicode, block 2800)."""


def terminal_curve(curve: Curve, *, columns: int = 72, rows: int = 12, encoding: str | None = "utf-8") -> str:
    """
    The learning rate over global steps as text: rates on the left, steps and tasks below.

    Args:
        curve ([`Curve`]):
            What to draw. Where the trunk waits during a branch, it is dotted.
        columns (`int`, *optional*, defaults to 72):
            Width of the text.
        rows (`int`, *optional*, defaults to 12):
            Lines of the curve itself.
        encoding (`str`, *optional*, defaults to `"utf-8"`):
            Encoding of the terminal: braille dots where it is Unicode, else plain ASCII.

    Example:

    ```python
    >>> from hf_infinite_lr.plots import Part, Span
    >>> decay = Curve([Part("decay", 0, 0, 40, lambda step: 1 - step / 40)], [Span("web", 0, 40)])
    >>> print(terminal_curve(decay, columns=24, rows=4, encoding="ascii"))
         1.0 |***
             |  *****
             |       *****
           0 |           ***
             +--------------
              0           40
              |web

    ```
    """
    unicode = (encoding or "ascii").lower().replace("-", "").startswith("utf")
    width = columns - _MARGIN - 1
    across, down = (2, 4) if unicode else (1, 1)
    peak = curve.peak or 1.0
    dots = set(_dots(curve, peak, width * across, rows * down))
    lines = []
    for row in range(rows):
        label = format_rate(peak) if row == 0 else "0" if row == rows - 1 else ""
        cells = (_braille if unicode else _ascii)(dots, row, width)
        lines.append(f"{label:>{_MARGIN - 1}} {'│' if unicode else '|'}{cells}".rstrip())
    corner = "└" + "─" * width if unicode else "+" + "-" * width
    lines.append(" " * _MARGIN + corner)
    last = str(curve.num_steps)
    lines.append(" " * (_MARGIN + 1) + "0" + last.rjust(width - 1))
    lines.append(" " * (_MARGIN + 1) + _task_line(curve, width, unicode))
    return "\n".join(lines)


def _dots(curve: Curve, peak: float, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Dots `(x, y)` of the curve, y from the top; a steep part fills the dots between two of its points."""
    num_steps = curve.num_steps
    for part in curve.parts:
        before: int | None = None
        for step, rate in part.samples(4 * width):
            x = min(int(step * width / num_steps), width - 1)
            y = round((1 - min(max(rate / peak, 0.0), 1.0)) * (height - 1))
            origin = y if before is None else before
            yield from ((x, between) for between in range(y, origin, -1 if y > origin else 1))
            yield x, y
            before = y
        if part.phase == BRANCH:
            y = round((1 - part.rate(part.start) / peak) * (height - 1))
            first, last = (int(step * width / num_steps) for step in (part.start, part.stop))
            yield from ((x, y) for x in range(first, min(last, width)) if x % 3 == 0)


def _braille(dots: set[tuple[int, int]], row: int, width: int) -> str:
    codes = [
        sum(bit for y, bits in enumerate(_DOTS) for x, bit in enumerate(bits) if (2 * column + x, 4 * row + y) in dots)
        for column in range(width)
    ]
    return "".join(chr(_BRAILLE + code) if code else " " for code in codes)


def _ascii(dots: set[tuple[int, int]], row: int, width: int) -> str:
    return "".join("*" if (column, row) in dots else " " for column in range(width))


def _task_line(curve: Curve, width: int, unicode: bool) -> str:
    line = [" "] * width
    for task, label in zip(curve.tasks, fitting_labels(curve.tasks, curve.num_steps, width), strict=True):
        if not label:
            continue
        text = ("╵" if unicode else "|") + (label if unicode else label.replace("…", "~"))
        start = min(task.start * width // curve.num_steps, width - 1)
        line[start : start + len(text)] = text[: width - start]
    text = "".join(line).rstrip()
    return text if unicode else text.encode("ascii", "replace").decode()
