"""Numbers as text, and rows of text as aligned or Markdown tables."""

from collections.abc import Sequence

NOTHING = "-"


def number(value: float | None) -> str:
    """
    A value with three decimals, or with three digits where it is small; `-` where it was not evaluated.

    >>> number(1.25), number(0.00012), number(None)
    ('1.250', '1.20e-04', '-')
    """
    if value is None:
        return NOTHING
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 or value != value else f"{value:.2e}"


def count(value: int | None) -> str:
    """A count with its thousands apart; `-` where it is not known."""
    return NOTHING if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """Seconds with one decimal; `-` where they were not measured."""
    return NOTHING if value is None else f"{value:,.1f}"


def aligned(rows: Sequence[Sequence[str]], *, gap: str = "  ") -> str:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(gap.join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """
    Rows of cells as a Markdown table, the first row its head; columns of numbers to the right.

    >>> print(markdown([["task", "loss"], ["web", "1.250"], ["code", "-"]]))
    | task | loss |
    | --- | ---: |
    | web | 1.250 |
    | code | - |
    """
    head, *body = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    ruler = ["---:" if all(map(_is_numeric, column)) else "---" for column in zip(*body, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *body))


def _is_numeric(cell: str) -> bool:
    if cell in (NOTHING, "open"):
        return True
    try:
        float(cell.replace(",", ""))
    except ValueError:
        return False
    return True
