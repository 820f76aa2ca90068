"""A state that one process stored gives another process the same posterior."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from surrogates.registry import plugin, plugins
from surrogates.testing.contract import SurrogateContract

SMALL: dict[str, dict[str, Any]] = {
    "auto": {"candidates": ["gp", "nngp"], "combine": "average"},
    "hmc": {"width": 16, "depth": 1, "n_warmup": 30, "n_draws": 24, "n_members": 64, "max_r_hat": 10.0},
    "ensemble": {"width": 16, "max_steps": 20, "n_members": 16},
    "sgmcmc": {"width": 16, "depth": 1, "n_steps": 100, "n_members": 32},
    "dkl": {"width": 16, "n_members": 2, "n_steps": 20},
    "neural-linear": {"width": 16, "depth": 1, "n_members": 2, "n_steps": 20},
    "laplace": {"width": 16, "n_members": 2, "n_steps": 20},
}

ELSEWHERE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from surrogates.registry import plugin
from surrogates.testing.contract import SurrogateContract

folder = Path(sys.argv[1])
for name, options in json.loads((folder / "options.json").read_text()).items():
    kept = type("Kept", (SurrogateContract,), {"plugin": name, "options": options})()
    model = plugin(name).build(kept.request())
    model.load_state(load_file(folder / f"{name}.state"))
    with torch.no_grad():
        posterior = model.posterior(load_file(folder / "points")["x"])
    found = {"mean": posterior.mean.contiguous(), "variance": posterior.variance.contiguous()}
    save_file(found, folder / f"{name}.found")
"""


@pytest.mark.slow
def test_a_state_gives_another_process_the_same_posterior(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    names = sorted(name for name, each in plugins().items() if each.abilities.needs_model)
    x = torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    save_file({"x": x}, tmp_path / "points")
    (tmp_path / "options.json").write_text(json.dumps({name: SMALL.get(name, {}) for name in names}))
    expected = {}
    for name in names:
        kept = type("Kept", (SurrogateContract,), {"plugin": name, "options": SMALL.get(name, {})})()
        model: Any = plugin(name).build(kept.request())
        model.fit(torch.Generator().manual_seed(0))
        save_file(
            {key: value.contiguous() for key, value in model.state().items()}, tmp_path / f"{name}.state"
        )
        with torch.no_grad():
            expected[name] = model.posterior(x)
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], check=True, timeout=250)
    for name in names:
        found = load_file(tmp_path / f"{name}.found")
        assert torch.allclose(found["mean"], expected[name].mean, atol=1e-6), name
        assert torch.allclose(found["variance"], expected[name].variance, rtol=1e-4, atol=1e-6), name
