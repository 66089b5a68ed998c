"""Tables of text on the terminal."""

from collections.abc import Sequence


def print_table(rows: Sequence[Sequence[str]], least: Sequence[int] | None = None) -> None:
    """Prints rows of text in columns, each at least as wide as `least` says."""
    least = least or [0] * len(rows[0])
    widths = [max(least[column], *(len(row[column]) for row in rows)) for column in range(len(least))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), flush=True)


def format_number(value: object) -> str:
    """Four significant digits where a float has more."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
