"""What an answer must look like, as a GBNF grammar for llama.cpp's sampler. Pure."""

from localmoe.engine.grammar.errors import SchemaRefusedError
from localmoe.engine.grammar.notation import JSON, Bounds, Notation, with_basic_rules
from localmoe.engine.grammar.schema import schema_rules, schema_to_gbnf
from localmoe.engine.grammar.strings import (
    Symbols,
    literal,
    sequence,
    text_until,
    with_reasoning,
)

__all__ = [
    "JSON",
    "Bounds",
    "Notation",
    "SchemaRefusedError",
    "Symbols",
    "literal",
    "schema_rules",
    "schema_to_gbnf",
    "sequence",
    "text_until",
    "with_basic_rules",
    "with_reasoning",
]
