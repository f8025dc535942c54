"""What an answer must look like, as a GBNF grammar for llama.cpp's sampler. Pure."""

from localmoe.engine.grammar.schema import schema_to_gbnf
from localmoe.engine.grammar.strings import with_reasoning

__all__ = ["schema_to_gbnf", "with_reasoning"]
