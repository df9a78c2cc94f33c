"""A table of text that a notebook and the interactive prompt show without `print`."""


class Table(str):
    """Lines of text whose `repr` is the text itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
