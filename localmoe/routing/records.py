"""What a routing trace holds, as arrays.

Arrays are per layer, since layers may differ in top-k and in the number of experts. Tokens are in
the order in which the engine saw them. In a prefill batch the last layer computes only the tokens
whose logits are wanted, so its rows may be absent: ids are then -1 and weights NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from localmoe.errors import TraceFileError
from localmoe.facts.model import MAX_LAYERS, Model
from localmoe.routing import gating

PREFILL, DECODE = 0, 1
MAX_EXPERTS = 32_767  # ids are int16 in memory
ABSENT = -1

Ids = NDArray[np.int16]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class TraceLayer:
    """One MoE layer. ``index`` is its number in the model; dense layers are not in a trace."""

    index: int
    experts: int
    used: int  # top-k
    expert_bytes: int = 0  # of one expert, all its projections; 0: unknown


@dataclass(frozen=True, slots=True)
class TraceHeader:
    """What was recorded, and of which model."""

    model: str
    architecture: str
    layers: tuple[TraceLayer, ...]
    gating: str = ""  # in words, see gating.py; "" unknown
    dense_bytes: int = 0  # what every token needs; 0: unknown
    weights: bool = True  # the weights that the experts' outputs are multiplied with
    logits: bool = False  # the router's output before any gating function
    source: str = ""  # the program that recorded it

    def __post_init__(self) -> None:
        """Raises TraceFileError for layers that no model can have."""
        indices = [layer.index for layer in self.layers]
        if not 1 <= len(indices) <= MAX_LAYERS:
            raise TraceFileError(
                f"a trace of {len(indices)} layers; 1 to {MAX_LAYERS} are possible"
            )
        if indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < MAX_LAYERS:
            raise TraceFileError("the layers of a trace are not in order, or out of range")
        for layer in self.layers:
            if not (1 <= layer.used <= layer.experts <= MAX_EXPERTS and layer.expert_bytes >= 0):
                raise TraceFileError(
                    f"layer {layer.index} uses {layer.used} of {layer.experts} experts"
                )

    @classmethod
    def of_model(cls, model: Model, *, weights: bool = True, logits: bool = False) -> TraceHeader:
        """The header for a recording of ``model``. Raises TraceFileError for a dense model."""
        layers = tuple(
            TraceLayer(
                layer.index,
                layer.expert_count,
                layer.expert_used,
                layer.expert_bytes // layer.expert_count,
            )
            for layer in model.layers
            if layer.expert_count and layer.loaded
        )
        if not layers:
            raise TraceFileError(
                f"{model.name} has no experts: there is no routing to record",
                hint="`localmoe list` shows the models found here",
            )
        return cls(
            model.name,
            model.architecture,
            layers,
            gating=gating.describe(model),
            dense_bytes=model.dense_bytes,
            weights=weights,
            logits=logits,
            source="localmoe",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A recorded routing of n tokens.

    ``phase`` u8[n]: PREFILL or DECODE. ``batch`` i32[n]: number of the engine step that computed
    the token. ``tokens`` i32[n]: token ids, -1 unknown. ``segment`` i32[n]: index into ``labels``,
    the prompts (or domains) of the recording. ``token_texts``: text of token ids, untrusted.
    ``cut``: the recording broke off in the middle of a step.
    """

    header: TraceHeader
    phase: NDArray[np.uint8]
    batch: NDArray[np.int32]
    tokens: NDArray[np.int32]
    segment: NDArray[np.int32]
    labels: tuple[str, ...]
    layer_ids: tuple[Ids, ...]
    layer_weights: tuple[Floats, ...] | None = None
    layer_logits: tuple[Floats, ...] | None = None
    token_texts: Mapping[int, str] = field(default_factory=dict)
    cut: bool = False

    def __len__(self) -> int:
        return len(self.phase)

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the MoE layers in the model, ascending."""
        return tuple(layer.index for layer in self.header.layers)

    def info(self, layer: int) -> TraceLayer:
        return self.header.layers[self._at(layer)]

    def ids(self, layer: int) -> Ids:
        """i16[n, k] expert ids in the router's order, -1 where the layer did not run."""
        return self.layer_ids[self._at(layer)]

    def weights(self, layer: int) -> Floats | None:
        """f32[n, k], NaN where unknown; None when the trace has none."""
        return self.layer_weights[self._at(layer)] if self.layer_weights else None

    def logits(self, layer: int) -> Floats | None:
        """f32[n, experts], NaN where unknown; None when the trace has none."""
        return self.layer_logits[self._at(layer)] if self.layer_logits else None

    @property
    def decode(self) -> Mask:
        """bool[n]: the tokens that were computed one at a time."""
        return np.equal(self.phase, DECODE)

    def select(self, tokens: Mask) -> Trace:
        """The trace of some tokens only, in the same order."""
        return replace(
            self,
            phase=self.phase[tokens],
            batch=self.batch[tokens],
            tokens=self.tokens[tokens],
            segment=self.segment[tokens],
            layer_ids=_rows(self.layer_ids, tokens),
            layer_weights=_rows(self.layer_weights, tokens) if self.layer_weights else None,
            layer_logits=_rows(self.layer_logits, tokens) if self.layer_logits else None,
        )

    def _at(self, layer: int) -> int:
        try:
            return self.layers.index(layer)
        except ValueError:
            raise KeyError(f"layer {layer} is not in this trace") from None


def _rows(arrays: Sequence[NDArray[_T]], tokens: Mask) -> tuple[NDArray[_T], ...]:
    return tuple(array[tokens] for array in arrays)
