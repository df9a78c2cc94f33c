"""A table of text that a notebook and the interactive prompt show without `print`."""

from collections.abc import Sequence


class Table(str):
    """Lines of text whose `repr` is the text itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of text, one for each row, whose columns are two spaces apart.

    Args:
      rows: the texts of each row; all rows have the same number of columns.
      left: the number of columns, from the first, that are aligned to the left. The others are
        aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust if number < left else str.rjust for number in range(len(widths))]
    return [
        "  ".join(pad(text, width) for pad, text, width in zip(pads, row, widths, strict=True))
        for row in rows
    ]
