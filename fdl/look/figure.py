"""The figures of fdl: matplotlib's, which a notebook shows by themselves."""

import io

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A figure that belongs to nobody else: pyplot does not know it, so nothing shows it twice."""

    def _repr_png_(self) -> bytes:
        """What a notebook shows where a figure is the last expression of a cell."""
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
