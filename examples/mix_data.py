"""Find the mixture of training data that suits a target: shares of four sources, on scikit-learn's digits.

Each source holds digits of some classes, seen through some defect; the target is clean digits of all classes.
Every trial draws the same number of training images in the proportions asked for, and is scored on the target.

With a service running (`bo up`):

    python examples/mix_data.py --trials 25
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from bo_service.client import Client, TrialHandle

SPEC: dict[str, Any] = {
    "name": "mix-data",
    "parameters": [
        {
            "type": "mixture",
            "name": "mix",
            "components": [
                {"name": "low_digits"},
                {"name": "high_digits"},
                {"name": "blurred"},
                {"name": "noisy", "high": 0.6},
            ],
        },
    ],
    # noisy images are cheap to get wrong: at most as many as clean ones
    "constraints": ["mix.noisy <= mix.low_digits + mix.high_digits"],
    "metrics": [{"name": "accuracy", "goal": "maximize"}],
    "seed": 1,
}

N_TRAINING = 200


@cache
def sources() -> tuple[dict[str, tuple[Any, Any]], tuple[Any, Any]]:
    """The images of each source, and the target's."""
    found = load_digits()
    images, labels = found.data / 16.0, found.target
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    pool, target = order[:1200], order[1200:]
    low, high = pool[labels[pool] < 5], pool[labels[pool] >= 5]
    square = images[pool].reshape(-1, 8, 8)
    blurred = sum(np.roll(square, shift, axis=axis) for axis in (1, 2) for shift in (-1, 0, 1)) / 6
    noisy = images[pool] + rng.normal(0, 0.5, size=images[pool].shape)
    pools = {
        "low_digits": (images[low], labels[low]),
        "high_digits": (images[high], labels[high]),
        "blurred": (blurred.reshape(len(pool), -1), labels[pool]),
        "noisy": (noisy, labels[pool]),
    }
    return pools, (images[target], labels[target])


def objective(trial: TrialHandle) -> float:
    """Accuracy on the target of a classifier trained on the mixture."""
    pools, (target_images, target_labels) = sources()
    rng = np.random.default_rng(1)
    images, labels = [], []
    for name, share in trial["mix"].items():
        pool_images, pool_labels = pools[name]
        chosen = rng.permutation(len(pool_images))[: round(share * N_TRAINING)]
        images.append(pool_images[chosen])
        labels.append(pool_labels[chosen])
    model = LogisticRegression(max_iter=300).fit(np.concatenate(images), np.concatenate(labels))
    return float(model.score(target_images, target_labels))


def main() -> None:
    """Search from this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--name", default="mix-data")
    options = parser.parse_args()
    with Client() as client:
        result = client.optimize(SPEC | {"name": options.name}, objective, trials=options.trials)
    assert result.best is not None
    shares = ", ".join(f"{name} {share:.2f}" for name, share in result.best.parameters["mix"].items())
    print(f"best accuracy {result.best.metrics['accuracy']:.4f} with {shares}")


if __name__ == "__main__":
    main()
