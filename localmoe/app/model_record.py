"""What a model's header says, as JSON between two processes of this program. Pure.

To read a header takes longer, since a vocabulary is walked through: 20 ms for 150,000 tokens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from localmoe.facts.model import Layer, LongArray, Model, Role, Tensor, Value

_LONG = "long array"  # the key of a LongArray: no other value is an object


def encoded_model(model: Model) -> dict[str, Any]:
    """What ``json.dumps`` takes; paths are absolute, for a reader that stands somewhere else."""
    plain = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return plain | {
        "paths": [str(path.absolute()) for path in model.paths],
        "metadata": {key: _encoded(value) for key, value in model.metadata.items()},
        "tensors": [_row(tensor) for tensor in model.tensors],
        "layers": [_row(layer) for layer in model.layers],
    }


def decoded_model(document: Any) -> Model:
    """The model from what ``encoded_model`` made. Raises one of ``kept.DAMAGED``."""
    return Model(
        **document
        | {
            "paths": tuple(map(Path, document["paths"])),
            "metadata": {key: _decoded(value) for key, value in document["metadata"].items()},
            "tensors": tuple(
                Tensor(name, tuple(shape), kind, offset, nbytes, part, layer, Role(role), loaded)
                for name, shape, kind, offset, nbytes, part, layer, role, loaded in document[
                    "tensors"
                ]
            ),
            "layers": tuple(Layer(*row) for row in document["layers"]),
        }
    )


def _row(record: Tensor | Layer) -> list[Any]:
    values = [getattr(record, field.name) for field in dataclasses.fields(record)]
    return [value.value if isinstance(value, Role) else value for value in values]


def _encoded(value: Value) -> Any:
    if isinstance(value, LongArray):
        return {_LONG: [value.element, value.count, value.offset, value.head, value.end]}
    return [_encoded(part) for part in value] if isinstance(value, tuple) else value


def _decoded(value: Any) -> Value:
    if isinstance(value, dict):
        element, count, offset, head, end = value[_LONG]
        return LongArray(element, count, offset, tuple(head), end)
    found: Value = tuple(map(_decoded, value)) if isinstance(value, list) else value
    return found
