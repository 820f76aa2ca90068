"""Tune a network on scikit-learn's handwritten digits: six parameters of mixed kinds, log loss, accuracy watched.

With a service running (`bo up`):

    python examples/tune_digits.py --trials 30 --workers 2
"""

from __future__ import annotations

import argparse
import warnings
from functools import cache
from typing import Any

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_validate
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bo_service.client import Client, TrialHandle

SPEC: dict[str, Any] = {
    "name": "digits",
    "parameters": [
        {"type": "float", "name": "learning_rate", "low": 1e-5, "high": 0.3, "scale": "log"},
        {"type": "float", "name": "alpha", "low": 1e-7, "high": 10.0, "scale": "log"},
        {"type": "int", "name": "units", "low": 4, "high": 64, "scale": "log"},
        {"type": "categorical", "name": "activation", "choices": ["relu", "tanh", "logistic"]},
        {"type": "ordinal", "name": "batch_size", "levels": [16, 32, 64, 128, 256]},
        {"type": "bool", "name": "nesterovs"},
    ],
    "metrics": [{"name": "log_loss", "goal": "minimize"}, {"name": "accuracy", "goal": "track"}],
    "seed": 1,
}


@cache
def digits() -> tuple[Any, Any]:
    """Features and labels of 1,000 digits."""
    found = load_digits()
    return found.data[:1000], found.target[:1000]


def objective(trial: TrialHandle) -> dict[str, float]:
    """Log loss and accuracy, means of three folds, eight epochs of stochastic gradient descent each."""
    network = MLPClassifier(
        hidden_layer_sizes=(trial["units"],),
        activation=trial["activation"],
        solver="sgd",
        learning_rate_init=trial["learning_rate"],
        alpha=trial["alpha"],
        batch_size=trial["batch_size"],
        nesterovs_momentum=trial["nesterovs"],
        max_iter=8,
        random_state=0,
    )
    with warnings.catch_warnings():
        # eight epochs are the budget, converged or not; a diverging network simply scores badly
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        scores = cross_validate(
            make_pipeline(StandardScaler(), network), *digits(), cv=3, scoring=("neg_log_loss", "accuracy")
        )
    return {
        "log_loss": -float(scores["test_neg_log_loss"].mean()),
        "accuracy": float(scores["test_accuracy"].mean()),
    }


def main() -> None:
    """Tune from this process, with threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="digits")
    options = parser.parse_args()
    with Client() as client:
        result = client.optimize(
            SPEC | {"name": options.name}, objective, trials=options.trials, workers=options.workers
        )
    assert result.best is not None
    metrics = result.best.metrics
    print(
        f"best log loss {metrics['log_loss']:.4f} (accuracy {metrics['accuracy']:.4f}) with {result.best.parameters}"
    )


if __name__ == "__main__":
    main()
