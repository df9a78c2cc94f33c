"""Figures and tables that a notebook shows by themselves."""

import io

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A figure that belongs to nobody else: pyplot does not know it, so nothing shows it twice.

    Example:
      >>> Figure()._repr_png_()[1:4]
      b'PNG'
    """

    def _repr_png_(self) -> bytes:
        """What a notebook shows where a figure is the last expression of a cell."""
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


class Table(str):
    """Lines of text; its `repr` is the text itself, so that it can be read without `print`.

    Example:
      >>> Table("path    parameters\\ndense_0          8")
      path    parameters
      dense_0          8
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
