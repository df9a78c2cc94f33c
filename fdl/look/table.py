"""Text in columns, which a notebook and the interactive prompt show as it is printed."""


class Table(str):
    """Lines of text; its `repr` is the text itself, so that it can be read without `print`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
