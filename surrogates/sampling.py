"""Placeholder sampling: rejection only."""

from __future__ import annotations
import numpy as np
from scipy.stats import qmc
from surrogates.parameters import *
from surrogates.space import SearchSpace


def _val(p, u):
    if isinstance(p, Fixed):
        return p.value
    if isinstance(p, (Float, Int)):
        if p.log:
            return p.canonical(float(np.exp(np.log(p.low) + u[0] * (np.log(p.high) - np.log(p.low)))))
        return p.canonical(p.low + u[0] * (p.high - p.low))
    if isinstance(p, Mixture):
        e = -np.log(np.clip(np.array(u), 1e-12, 1))
        e /= e.sum()
        lo = np.array([c.low for c in p.components])
        e = lo + (1 - lo.sum()) * e
        return p.canonical({c.name: float(x) for c, x in zip(p.components, e)})
    return p.choices[min(int(u[0] * len(p.choices)), len(p.choices) - 1)]


def space_filling(space: SearchSpace, n, *, seed, start=0, fixed=None):
    d = sum(len(p.components) if isinstance(p, Mixture) else 1 for p in space)
    s = qmc.Sobol(d, scramble=True, seed=seed)
    if start:
        s.fast_forward(start)
    out = []
    while len(out) < n:
        for u in s.random(max(n, 1)):
            c = {}
            j = 0
            for p in space:
                k = len(p.components) if isinstance(p, Mixture) else 1
                if space.is_active(p, c):
                    c[p.name] = (fixed or {}).get(p.name, _val(p, u[j : j + k]))
                j += k
            if not space.violated(c):
                out.append(c)
            if len(out) == n:
                break
    return out


def centre(space):
    c = {}
    for p in space:
        if space.is_active(p, c):
            c[p.name] = p.centre()
    return c


def feasibility_problem(space):
    return None
