"""Two objectives and a constraint: a forest on scikit-learn's digits that is accurate, small, and quick to train.

With a service running (`bo up`):

    python examples/accuracy_and_size.py --trials 30
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from bo_service.client import Client, TrialHandle

SPEC: dict[str, Any] = {
    "name": "accuracy-and-size",
    "parameters": [
        {"type": "int", "name": "trees", "low": 1, "high": 60, "scale": "log"},
        {"type": "int", "name": "depth", "low": 2, "high": 12},
        {"type": "float", "name": "features", "low": 0.05, "high": 1.0},
        {"type": "bool", "name": "bootstrap"},
        {
            "type": "float",
            "name": "samples",
            "low": 0.1,
            "high": 1.0,
            "active_if": {"parent": "bootstrap", "values": [True]},
        },
    ],
    "metrics": [
        {"name": "accuracy", "goal": "maximize", "threshold": 0.6},
        {"name": "nodes", "goal": "minimize"},
        {"name": "splits_tried", "goal": "constraint", "upper": 40_000},
    ],
    "seed": 1,
}


@cache
def digits() -> list[Any]:
    """Training and test images and labels."""
    found = load_digits()
    split: list[Any] = train_test_split(found.data, found.target, test_size=0.4, random_state=0)
    return split


def objective(trial: TrialHandle) -> dict[str, float]:
    """Accuracy on the test images, nodes of the forest, and features looked at over all its splits."""
    train, test, train_labels, test_labels = digits()
    forest = RandomForestClassifier(
        n_estimators=trial["trees"],
        max_depth=trial["depth"],
        max_features=trial["features"],
        bootstrap=trial["bootstrap"],
        max_samples=trial.get("samples"),
        random_state=0,
    ).fit(train, train_labels)
    nodes = sum(tree.tree_.node_count for tree in forest.estimators_)
    features = max(1, int(trial["features"] * train.shape[1]))
    return {
        "accuracy": float(forest.score(test, test_labels)),
        "nodes": float(nodes),
        "splits_tried": float(nodes // 2 * features),
    }


def main() -> None:
    """Search from this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--name", default="accuracy-and-size")
    options = parser.parse_args()
    with Client() as client:
        result = client.optimize(SPEC | {"name": options.name}, objective, trials=options.trials)
    print("accuracy  nodes  splits tried")
    for trial in sorted(result.pareto, key=lambda t: t.metrics["nodes"]):
        print(
            f"{trial.metrics['accuracy']:8.4f} {trial.metrics['nodes']:6.0f} {trial.metrics['splits_tried']:8.0f}"
        )


if __name__ == "__main__":
    main()
