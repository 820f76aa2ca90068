"""How a surrogate plug-in enters Ax: a model class whose instances the plug-in builds, and a registered fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ax.generators.torch.botorch_modular.surrogate import SurrogateSpec
from ax.generators.torch.botorch_modular.utils import ModelConfig, fit_botorch_model
from botorch.models.model import Model
from botorch.utils.datasets import SupervisedDataset
from pydantic import BaseModel
from torch import Tensor

from surrogates.encoding import Encoding
from surrogates.protocol import BuildRequest, Plugin

_registered: set[type] = set()


class PluggedModel(Model):
    """Constructing it gives what the plug-in builds; Ax sees an ordinary BoTorch model class."""

    def __new__(
        cls,
        *,
        train_X: Tensor,
        train_Y: Tensor,
        train_Yvar: Tensor | None,
        plugin: Plugin,
        encoding: Encoding,
        options: BaseModel,
        warm: Mapping[str, Tensor] | None,
        device: str,
        seed: int,
    ) -> Any:
        model = plugin.build(
            BuildRequest(
                train_X=train_X,
                train_Y=train_Y,
                train_Yvar=train_Yvar,
                encoding=encoding,
                options=options,
                warm=warm,
                device=device,
            )
        )
        register_fit(type(model))
        model.fit_seed = seed  # type: ignore[attr-defined]
        return model

    @classmethod
    def construct_inputs(cls, training_data: SupervisedDataset, **extra: Any) -> dict[str, Any]:
        """The data of one outcome and what `surrogate_spec` passed along."""
        names = ("plugin", "encoding", "options", "warm", "device", "seed")
        return {
            "train_X": training_data.X,
            "train_Y": training_data.Y,
            "train_Yvar": training_data.Yvar,
            **{name: extra[name] for name in names},
        }


def register_fit(model_class: type) -> None:
    """Have Ax's dispatcher fit this class by its own `fit` instead of hundreds of likelihood closures."""
    if model_class in _registered:
        return

    fit_botorch_model.register(model_class)(_fit)
    _registered.add(model_class)


def _fit(model: Any, **ignored: Any) -> None:
    del ignored
    model.fit(torch.Generator().manual_seed(model.fit_seed))


def surrogate_spec(
    plugin: Plugin,
    encoding: Encoding,
    *,
    options: BaseModel,
    warm: Mapping[str, Mapping[str, Tensor]],
    outcomes: tuple[str, ...],
    device: str,
    seed: int,
) -> SurrogateSpec:
    """One model for each outcome, warm-started from its own state; inputs and outputs are in model units already."""
    configs = {
        name: [
            ModelConfig(
                botorch_model_class=PluggedModel,
                model_options={
                    "plugin": plugin,
                    "encoding": encoding,
                    "options": options,
                    "warm": warm.get(name),
                    "device": device,
                    "seed": seed + position,
                },
                input_transform_classes=None,
                outcome_transform_classes=None,
            )
        ]
        for position, name in enumerate(outcomes)
    }
    return SurrogateSpec(
        model_configs=configs[outcomes[0]], metric_to_model_configs=configs, allow_batched_models=False
    )
