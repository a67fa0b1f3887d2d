"""One process or many: the only place that knows `accelerate`.

Started plainly, a run is one process. Started by `accelerate launch` or `torchrun`, the same run is DDP or FSDP
as their configuration says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module
from torch.optim import Optimizer

from vcllm.contracts.problems import BadRequest
from vcllm.engine.precision import has_bfloat16

Track = Callable[[dict[str, float], int], None]

SHARDED = (DistributedType.FSDP,)


class Parallel:
    """This process's place among those that train together."""

    def __init__(self, trackers: list[str] | None = None, folder: Path | None = None) -> None:
        missing = sorted({*(trackers or [])} - {kind.value for kind in get_available_trackers()})
        if missing:
            raise BadRequest(f"VCLLM_TRACKERS names {', '.join(missing)}: install the package, or leave it out.")
        cpu = not torch.cuda.is_available()
        device = torch.device("cpu" if cpu else "cuda")
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if has_bfloat16(device) else "no",
            log_with=trackers or None,
            project_dir=None if folder is None else str(folder),
        )
        if cpu and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
            _shard_on_processors(self.accelerator)
        if self.accelerator.distributed_type is DistributedType.DEEPSPEED:
            # Its engine steps with every backward pass and keeps its optimiser to itself: accumulation and exact
            # resume would be wrong without a word.
            raise BadRequest("DeepSpeed is not supported. Use FSDP 2, which spreads the same over the devices.")
        if self.sharded and self.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise BadRequest("FSDP 1 hides the output layer from the chunked loss. Set fsdp_version: 2.")

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def mixed(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.accelerator.mixed_precision == "bf16"

    @property
    def sharded(self) -> bool:
        """Whether no process holds all weights."""
        return self.accelerator.distributed_type in SHARDED

    def prepare(self, module: Module, optimizer: Optimizer) -> tuple[Module, Optimizer]:
        """Wrapped as the launch configuration asks; unchanged for one process."""
        if self.sharded:  # layers are gathered one at a time; accelerate asks the outermost module which these are
            kinds = (getattr(inner, "_no_split_modules", None) for inner in module.modules())
            module._no_split_modules = next((found for found in kinds if found), [])  # type: ignore[assignment]
        return self.accelerator.prepare(module, optimizer)

    def plain(self, module: Module) -> Any:
        """What `prepare` wrapped."""
        return self.accelerator.unwrap_model(module)

    def autocast(self) -> Any:
        return self.accelerator.autocast()

    @contextmanager
    def micro_batch(self, module: Module, *, last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch; gradients are exchanged in the last one of a step."""
        with nullcontext() if last or self.world == 1 else self.accelerator.no_sync(module):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients.

        Wrappers average over processes, but the losses of a step's micro-batches are parts of one sum.
        """
        self.accelerator.backward(loss * self.world if self.world > 1 else loss)

    def clip(self, module: Module, max_norm: float) -> float:
        """Clip gradients to a global norm; the norm before. float('nan') when a gradient is not finite."""
        parameters = [value for value in module.parameters() if value.requires_grad]
        norm = self.accelerator.clip_grad_norm_(parameters, max_norm)
        return float(norm) if norm is not None else 0.0

    def sum(self, figures: dict[str, Tensor]) -> dict[str, float]:
        """Each figure summed over processes; not every process has all of them (a pair's, or any in its turn)."""
        total: dict[str, float] = {}
        for part in self.gather_objects({name: float(value) for name, value in figures.items()}):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def from_main(self, value: Any) -> Any:
        """What the main process says."""
        return value if self.world == 1 else broadcast_object_list([value])[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        return [value] if self.world == 1 else gather_object([value])

    def start_trackers(self, run: str, config: dict[str, Any]) -> Track:
        """What to hand every step's figures to. Addresses and keys come from each tracker's own environment."""
        self.accelerator.init_trackers(run, config=_flat(config))
        return lambda figures, step: self.accelerator.log(figures, step=step)

    def end_trackers(self) -> None:
        if self.accelerator.log_with:
            self.accelerator.end_training()

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def full_state(self, module: Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Trained weights and the optimiser's tensors by name, whole even where they are sharded.

        Of sharded ones only the main process gets any, in its ordinary memory.
        """
        weights = {name: self._whole(value) for name, value in self._moving(module)}
        names, rows = list(weights), _raw(optimizer).state_dict()["state"].items()
        moments = {
            f"{names[index]}:{key}": self._whole(torch.as_tensor(value))
            for index, row in rows
            for key, value in row.items()
        }
        return _present(weights), _present(moments)

    def load_full_state(
        self, module: Module, optimizer: Optimizer, weights: dict[str, Tensor], moments: dict[str, Tensor]
    ) -> None:
        """The reverse of `full_state`; every process has read all of it."""
        raw, moving = _raw(optimizer), self._moving(module)
        with torch.no_grad():
            for name, value in moving:
                value.copy_(_sharded_like(value, weights[name]))
        numbers = {name: index for index, (name, _) in enumerate(moving)}
        state: dict[int, dict[str, Tensor]] = {}
        for name, moment in moments.items():
            parameter, _, key = name.rpartition(":")
            number = numbers[parameter]
            fits = moment.shape == moving[number][1].shape  # but the count of steps is one number
            state.setdefault(number, {})[key] = _sharded_like(moving[number][1], moment) if fits else moment
        raw.load_state_dict({**raw.state_dict(), "state": state})

    def copy_whole(self, module: Module, optimizer: Optimizer, into: Module) -> None:
        """Sharded trained weights into an ordinary module of the same names; on the main process."""
        weights, _ = self.full_state(module, optimizer)
        if self.is_main:
            with torch.no_grad():
                for name, value in into.named_parameters():
                    if name in weights:
                        value.copy_(weights[name])

    def _whole(self, value: Tensor) -> Tensor | None:
        """All processes must ask for the same."""
        if not isinstance(value, DTensor):
            return value.detach()
        whole: Tensor = value.full_tensor().detach()
        return whole.cpu() if self.is_main else None

    def _moving(self, module: Module) -> list[tuple[str, Tensor]]:
        return [(name, value) for name, value in self.plain(module).named_parameters() if value.requires_grad]


def _present(values: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if value is not None}


def _sharded_like(example: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a tensor, if the example is in parts."""
    if not isinstance(example, DTensor):
        return whole
    return distribute_tensor(whole.to(example.device), example.device_mesh, example.placements)


def _raw(optimizer: Optimizer) -> Optimizer:
    """The torch optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested keys joined by dots, as trackers want them."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def _shard_on_processors(accelerator: Accelerator) -> None:
    """FSDP without a GPU: torch can, `accelerate` passes over it; for trying a launch configuration out."""
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
