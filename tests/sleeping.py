"""A surrogate whose fit takes as long as a test likes, installed as a stranger's would be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MODULE = """
import os, time
from surrogates.gp.plugin import plugin as gp
from dataclasses import replace

def build(request):
    mark = os.environ["TEST_FIT_MARK"]
    open(mark, "a").close()
    time.sleep(float(os.environ["TEST_FIT_SECONDS"]))
    return gp.build(request)

plugin = replace(gp, name="sleeping", build=build)
"""


def installed(folder: Path, name: str, module: str) -> dict[str, str]:
    """A distribution with one surrogate; the environment of processes that have it."""
    (folder / f"{name}_surrogate.py").write_text(module)
    info = folder / f"{name}_surrogate-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-surrogate\nVersion: 1.0\n")
    entry_points = f"[bo_service.surrogates]\n{name} = {name}_surrogate:plugin\n"
    (info / "entry_points.txt").write_text(entry_points)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "TEST_FIT_MARK": str(folder / "fitting")}


def sleeping_surrogate(folder: Path, *, seconds: float) -> dict[str, str]:
    """The environment of processes that have it; its fits leave the file `fitting` in the folder as they begin."""
    return {**installed(folder, "sleeping", MODULE), "TEST_FIT_SECONDS": str(seconds)}


def sleeping_study(client: Any, make_spec: Any) -> str:
    """A study with data, whose model is being fitted because a worker asks."""
    study: str = client.create_study(make_spec(surrogate={"name": "sleeping"}, initial={"size": 2})).id
    rows = [{"parameters": {"x": 0.1 * i, "k": 1 + i}, "metrics": {"loss": i}} for i in range(4)]
    client.import_trials(study, rows)
    # until nothing lies ready that needs no model
    n_asked = 0
    while client.claim(study, f"asks-{n_asked}").trials:
        n_asked += 1
    return study
