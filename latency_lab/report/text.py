"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns under headers; a column in which every cell reads as a number is set to the right.

    Args:
        headers: one a column.
        rows: cells, as many a row as there are headers; each is shown as `str` shows it.

    Returns:
        Lines without a newline at the end.

    Example:
        >>> from latency_lab.report import table
        >>> print(table(["model", "ms"], [["seed", "0.91"], ["slim", "0.4"]]))
        model    ms
        -----  ----
        seed   0.91
        slim    0.4
    """
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(row: Sequence[str]) -> str:
        parts = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *map(line, cells)])


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or (cell[:1] in "+-." and cell[1:2].isdigit()) or cell in {"-", ""}
