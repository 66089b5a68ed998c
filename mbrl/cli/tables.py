"""Tables of text in the terminal."""

from collections.abc import Sequence

from mbrl.errors import one_line


def print_table(rows: Sequence[Sequence[str]], least: Sequence[int] | None = None) -> None:
    """Print rows of text in aligned columns.

    Args:
        rows: the cells of each row, all rows of the same length. Those of a stranger's run may hold anything, so they
            are printed without line breaks and control characters.
        least: the smallest width of each column, in characters; None for no minimum.
    """
    least = least or [0] * len(rows[0])
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(least[column], *(len(row[column]) for row in rows)) for column in range(len(least))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip(), flush=True)


def format_number(value: object) -> str:
    """The value as text; a float with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
