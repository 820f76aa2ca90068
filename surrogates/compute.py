"""Where and how precisely a surrogate computes: options that every plug-in has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch


class ComputeOptions(BaseModel):
    """Base of the options of all plug-ins with a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Annotated[str | None, Field(pattern=r"^(cpu|cuda|mps|xpu)(:\d+)?$")] = None
    """Torch's name of a device (`cpu`, `cuda`, `cuda:1`); null is what the worker computes on. One that the worker
    lacks is replaced by the CPU, and the fit says where it ran."""

    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the model; small linear systems are always solved in float64."""


def device_of(options: BaseModel, worker: str) -> torch.device:
    """The device of a fit: the options' or else the worker's, if this machine has it."""
    import torch  # noqa: PLC0415  described without torch

    wanted = torch.device(getattr(options, "device", None) or worker)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        return torch.device("cpu")
    return wanted


def dtype_of(options: BaseModel) -> torch.dtype:
    """The options' precision."""
    import torch  # noqa: PLC0415  described without torch

    return torch.float32 if getattr(options, "dtype", "float64") == "float32" else torch.float64
