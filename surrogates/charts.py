"""Free coordinates: a unit cube whose image is the feasible features, mixtures by stick-breaking, with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surrogates.encoding import Array, Encoding, share_ranges
from surrogates.parameters import Mixture


@dataclass(frozen=True, slots=True)
class _Stick:
    """One mixture: its feature columns, its free coordinates, and bounds on its shares."""

    columns: slice
    coordinates: slice
    low: Array
    """(k,), declared lower bounds"""
    high: Array
    reach_low: Array
    """(k,), where feature 0 stands"""
    width: Array
    """(k,), shares per unit of feature; 1 where the share is fixed"""

    def interval(self, i: int, left: Array) -> tuple[Array, Array, Array, Array]:
        """Bounds of share i when `left` (n,) is left, and their slopes in `left`."""
        from_rest = left - self.high[i + 1 :].sum()
        to_rest = left - self.low[i + 1 :].sum()
        smallest = np.maximum(self.low[i], from_rest)
        largest = np.maximum(np.minimum(self.high[i], to_rest), smallest)
        return smallest, largest, (from_rest > self.low[i]) * 1.0, (to_rest < self.high[i]) * 1.0


class Chart:
    """Maps z (n, m) in the unit cube to features (n, d) whose mixtures sum to 1 within their bounds.

    A mixture of k shares takes k - 1 coordinates: each is the place of a share in the interval that the
    shares before it leave. Other columns are their own coordinates.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.n_features = encoding.n_features
        plain: list[int] = []
        self._sticks: list[_Stick] = []
        n = sum(
            b.columns.stop - b.columns.start for b in encoding.blocks if not isinstance(b.parameter, Mixture)
        )
        for block in encoding.blocks:
            if not isinstance(block.parameter, Mixture):
                plain += range(block.columns.start, block.columns.stop)
                continue
            k = len(block.parameter.components)
            reach_low, reach_high = share_ranges(block.parameter)
            self._sticks.append(
                _Stick(
                    columns=block.columns,
                    coordinates=slice(n, n + k - 1),
                    low=np.array([c.low for c in block.parameter.components]),
                    high=np.array([c.high for c in block.parameter.components]),
                    reach_low=reach_low,
                    width=np.where(reach_high > reach_low, reach_high - reach_low, 1.0),
                )
            )
            n += k - 1
        self._plain = np.array(plain, dtype=np.intp)
        self.n_coordinates = n

    def coordinate_of(self, column: int) -> int | None:
        """The coordinate that is this column, or None for a share."""
        found = np.flatnonzero(self._plain == column)
        return int(found[0]) if len(found) else None

    def coordinates_of_mixture(self, columns: slice) -> slice:
        """The free coordinates of the mixture with these columns."""
        return next(stick.coordinates for stick in self._sticks if stick.columns == columns)

    def features(self, z: Array) -> Array:
        """Coordinates (n, m) to features (n, d)."""
        x = np.empty((len(z), self.n_features))
        x[:, self._plain] = z[:, : len(self._plain)]
        for stick in self._sticks:
            shares = self._shares(z[:, stick.coordinates], stick)
            x[:, stick.columns] = (shares - stick.reach_low) / stick.width
        return x

    def _shares(self, z: Array, stick: _Stick) -> Array:
        shares = np.empty((len(z), len(stick.low)))
        left = np.ones(len(z))
        for i in range(z.shape[1]):
            smallest, largest, _, _ = stick.interval(i, left)
            shares[:, i] = smallest + z[:, i] * (largest - smallest)
            left = left - shares[:, i]
        shares[:, -1] = left
        return shares

    def coordinates(self, x: Array) -> Array:
        """Features (n, d) to coordinates (n, m); the inverse of `features`."""
        z = np.empty((len(x), self.n_coordinates))
        z[:, : len(self._plain)] = x[:, self._plain]
        for stick in self._sticks:
            shares = stick.reach_low + x[:, stick.columns] * stick.width
            left = np.ones(len(x))
            for i in range(shares.shape[1] - 1):
                smallest, largest, _, _ = stick.interval(i, left)
                room = largest - smallest
                place = np.where(room > 1e-15, (shares[:, i] - smallest) / np.maximum(room, 1e-15), 0.5)
                z[:, stick.coordinates.start + i] = place
                left = left - shares[:, i]
        return np.clip(z, 0.0, 1.0)

    def pulled_back(self, z: Array, gradient: Array) -> Array:
        """A gradient in features (n, d) as one in coordinates (n, m), by the chain rule backwards."""
        result = np.empty_like(z)
        result[:, : len(self._plain)] = gradient[:, self._plain]
        for stick in self._sticks:
            result[:, stick.coordinates] = self._pull_stick(
                z[:, stick.coordinates], gradient[:, stick.columns] / stick.width, stick
            )
        return result

    def _pull_stick(self, z: Array, by_share: Array, stick: _Stick) -> Array:
        lefts, intervals = [np.ones(len(z))], []
        for i in range(z.shape[1]):
            intervals.append(stick.interval(i, lefts[-1]))
            smallest, largest, _, _ = intervals[-1]
            lefts.append(lefts[-1] - smallest - z[:, i] * (largest - smallest))
        result = np.empty_like(z)
        by_left = by_share[:, -1]
        for i in range(z.shape[1] - 1, -1, -1):
            smallest, largest, low_slope, high_slope = intervals[i]
            total = by_share[:, i] - by_left
            result[:, i] = total * (largest - smallest)
            by_left = by_left + total * ((1.0 - z[:, i]) * low_slope + z[:, i] * high_slope)
        return result
