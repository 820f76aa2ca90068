"""Fitted states as safetensors bytes: the warm start of the next fit, no pickle.

Members of a posterior (tensors named `draw.`) are left out: megabytes a fit that no later fit starts from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from safetensors.torch import load, save
from torch import Tensor

from bo_service.generation.model_units import FEASIBLE
from surrogates.protocol import DRAWS

SEPARATOR = "/"


def dump_states(states: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    """Outcome -> tensor name -> tensor, as bytes."""
    return bytes(
        save(
            {
                f"{outcome}{SEPARATOR}{name}": tensor.cpu().contiguous()
                for outcome, state in states.items()
                for name, tensor in state.items()
                if not name.startswith(DRAWS)
            }
        )
    )


def load_states(stored: bytes | None) -> dict[str, dict[str, Tensor]]:
    """The inverse; nothing for None. The feasibility outcome starts afresh each time: its rows come and go."""
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in (load(stored) if stored else {}).items():
        outcome, _, name = key.partition(SEPARATOR)
        if outcome != FEASIBLE:
            states[outcome][name] = tensor
    return dict(states)
