"""What a run must remember to go on as if nothing had happened: weights, optimiser, moving average, random state.

The learning rate and the place in the data follow from the step, and need no memory of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from vcllm.training.checkpoints import Saved
from vcllm.training.parallel import Parallel


def trained(module: Module) -> list[tuple[str, Tensor]]:
    """The parameters that move, by name; tied ones once."""
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


class Average:
    """An exponential moving average of the trained weights; nothing at all without a decay."""

    def __init__(self, module: Module, decay: float | None) -> None:
        self.decay = decay
        self.values = {} if decay is None else {name: value.detach().clone() for name, value in trained(module)}

    @torch.no_grad()
    def update(self, module: Module) -> None:
        if self.decay is not None:
            for name, value in trained(module):
                self.values[name].lerp_(value.detach().to(self.values[name].dtype), 1 - self.decay)

    @torch.no_grad()
    def copy_into(self, module: Module) -> None:
        """Make the average the module's weights."""
        for name, value in trained(module):
            if name in self.values:
                value.copy_(self.values[name])


def collect(parallel: Parallel, module: Module, optimizer: Optimizer, average: Average) -> dict[str, Tensor]:
    """Everything as named tensors; complete on the main process."""
    weights, moments = parallel.full_state(module, optimizer)
    tensors = {f"weight.{name}": value for name, value in weights.items()}
    tensors |= {f"optim.{name}": value for name, value in moments.items()}
    tensors |= {f"average.{name}": value for name, value in average.values.items()}
    for rank, states in enumerate(parallel.gather_objects(_random_states())):
        tensors |= {f"random.{rank}.{name}": torch.from_numpy(value) for name, value in states.items()}
    return tensors


def restore(saved: Saved, parallel: Parallel, module: Module, optimizer: Optimizer, average: Average) -> None:
    """The reverse of `collect`."""
    parallel.load_full_state(module, optimizer, _part(saved, "weight."), _part(saved, "optim."))
    for name, value in _part(saved, "average.").items():
        average.values[name].copy_(value)
    states = _part(saved, f"random.{parallel.rank}.")
    if states:
        _set_random_states(states)


def _part(saved: Saved, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in saved.tensors.items() if name.startswith(prefix)}


def _random_states() -> dict[str, np.ndarray[Any, Any]]:
    """Python's, numpy's and torch's generators, as arrays."""
    version, internal, gauss = random.getstate()
    assert version == 3, "Python's generator has kept this format since 2.3"
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    states = {
        "python": np.array(internal, np.int64),
        "python_gauss": np.array([] if gauss is None else [gauss], np.float64),
        "numpy": np.array(keys, np.int64),
        "numpy_rest": np.array([position, has_gauss, cached], np.float64),
        "torch": torch.get_rng_state().numpy(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state().numpy()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss, cached = states["numpy_rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def num_trained(module: Module) -> int:
    return sum(value.numel() for _, value in trained(module))


def all_finite(values: Iterable[float]) -> bool:
    return all(np.isfinite(value) for value in values)
