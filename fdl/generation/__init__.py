"""Generation: a language model continues prompts, token by token."""

from fdl.public_names import public as _public

from fdl.generation.tokens import generate as generate
from fdl.generation.tokens import stream_tokens as stream_tokens

__all__ = _public()
