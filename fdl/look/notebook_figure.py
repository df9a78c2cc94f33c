"""A matplotlib figure that a notebook can show without pyplot."""

import io

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A figure that is not registered with pyplot, so that a notebook shows it only once."""

    def _repr_png_(self) -> bytes:
        """The PNG image that a notebook shows if the figure is the last expression of a cell."""
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
