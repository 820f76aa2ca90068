"""Tuning tasks: three learners on scikit-learn's bundled data sets, their error by cross-validation.

Each has a table of 500 evaluated configurations in the user's cache folder, made where absent, for those who want
many values at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from problems.problem import Objective, Problem, Values
from surrogates.sampling import space_filling

N_FOLDS: Final = 3
N_CONFIGURATIONS: Final = 500
N_TRAIN: Final = 200
"""At most so many of them to learn from; the other 300 are for the test."""

TABLE_SEED: Final = 11
EPOCHS: Final = 12


@cache
def _data(name: str) -> tuple[Any, Any]:
    from sklearn import datasets

    load = {
        "digits": datasets.load_digits,
        "diabetes": datasets.load_diabetes,
        "cancer": datasets.load_breast_cancer,
    }
    return load[name](return_X_y=True)


def _score(model: Any, data: str, scoring: str) -> float:
    """Mean over the folds; scikit-learn's scores are larger-is-better."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold, cross_val_score

    folds = KFold(N_FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # a net that is not done after its epochs is part of the task
        warnings.simplefilter("ignore", ConvergenceWarning)
        return float(
            cross_val_score(model, *_data(data), cv=folds, scoring=scoring, error_score="raise").mean()
        )


def svm(parameters: Any, seed: int) -> Values:
    """Error rate of a support vector machine on principal components of handwritten digits."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler
    from sklearn.svm import SVC

    del seed
    machine = SVC(
        C=parameters["c"],
        gamma=parameters["gamma"],
        kernel=parameters["kernel"],
        coef0=parameters["coef0"],
    )
    model = make_pipeline(MinMaxScaler(), PCA(parameters["components"], random_state=0), machine)
    return {"error": 1 - _score(model, "digits", "accuracy")}


def boosting(parameters: Any, seed: int) -> Values:
    """Root mean squared error of boosted trees on the diabetes data."""
    from sklearn.ensemble import GradientBoostingRegressor

    del seed
    model = GradientBoostingRegressor(**parameters, random_state=0)
    return {"error": -_score(model, "diabetes", "neg_root_mean_squared_error")}


def mlp(parameters: Any, seed: int) -> Values:
    """Log loss of a small network on the breast cancer data after a few epochs."""
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    del seed
    network = MLPClassifier(
        hidden_layer_sizes=[parameters["width"]] * parameters["layers"],
        activation=parameters["activation"],
        solver="adam",
        alpha=parameters["alpha"],
        batch_size=parameters["batch_size"],
        learning_rate_init=parameters["learning_rate"],
        beta_1=parameters["momentum"],
        max_iter=EPOCHS,
        random_state=0,
    )
    return {"error": -_score(make_pipeline(StandardScaler(), network), "cancer", "neg_log_loss")}


def _task(name: str, summary: str, evaluate: Any, parameters: Sequence[Mapping[str, Any]]) -> Problem:
    return Problem(
        name=name,
        summary=summary,
        parameters=tuple(parameters),
        objectives=(Objective(name="error", goal="minimize"),),
        n_initial=10,
        batch=5,
        iterations=10,
        evaluate=evaluate,
        libraries=("sklearn",),
    )


def _log(name: str, low: float, high: float, kind: str = "float") -> dict[str, Any]:
    return {"type": kind, "name": name, "low": low, "high": high, "scale": "log"}


SVM = _task(
    "tune-svm",
    "support vector machine on digits: 3 floats, an integer, a category",
    svm,
    [
        _log("c", 1e-2, 1e3),
        _log("gamma", 1e-4, 1e1),
        {"type": "categorical", "name": "kernel", "choices": ["rbf", "poly", "sigmoid"]},
        {"type": "float", "name": "coef0", "low": 0.0, "high": 1.0},
        _log("components", 4, 64, "int"),
    ],
)

BOOSTING = _task(
    "tune-boosting",
    "boosted trees on diabetes: 3 floats, 3 integers, a category",
    boosting,
    [
        _log("learning_rate", 1e-3, 1.0),
        _log("n_estimators", 10, 150, "int"),
        {"type": "int", "name": "max_depth", "low": 1, "high": 6},
        _log("min_samples_leaf", 1, 50, "int"),
        {"type": "float", "name": "subsample", "low": 0.3, "high": 1.0},
        {"type": "float", "name": "max_features", "low": 0.1, "high": 1.0},
        {"type": "categorical", "name": "loss", "choices": ["squared_error", "huber", "absolute_error"]},
    ],
)

MLP = _task(
    "tune-mlp",
    "network on breast cancer: 3 floats, 2 integers, an ordinal, a category",
    mlp,
    [
        _log("learning_rate", 1e-4, 1e-1),
        _log("alpha", 1e-6, 1e0),
        {"type": "float", "name": "momentum", "low": 0.5, "high": 0.99},
        _log("width", 4, 64, "int"),
        {"type": "int", "name": "layers", "low": 1, "high": 3},
        {"type": "ordinal", "name": "batch_size", "levels": [32, 64, 128, 256]},
        {"type": "categorical", "name": "activation", "choices": ["relu", "tanh", "logistic"]},
    ],
)


TASKS: Final = (SVM, BOOSTING, MLP)


def table(problem: Problem, *, folder: Path | None = None) -> list[tuple[dict[str, Any], float]]:
    """The 500 configurations of a tuning task with their errors, from the cache or made now.

    Raises: MissingLibrary where it has to be made and scikit-learn is absent.
    """
    path = (folder or cache_folder()) / f"{problem.name}-{_digest(problem)}.json"
    if not path.exists():
        problem.require_libraries()
        print(f"{problem.name}: {N_CONFIGURATIONS} configurations, into {path}", file=sys.stderr, flush=True)
        configurations = space_filling(problem.space, N_CONFIGURATIONS, seed=TABLE_SEED)
        rows = [[c, problem.evaluate(c, 0)["error"]] for c in configurations]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(rows))
        unfinished.replace(path)
    return [(configuration, float(error)) for configuration, error in json.loads(path.read_text())]


def cache_folder() -> Path:
    """Where tables are kept."""
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "bo-service" / "benchmarks"


def _digest(problem: Problem) -> str:
    """Of all that the table depends on, but for the library's version."""
    content = [problem.parameters, N_CONFIGURATIONS, TABLE_SEED, N_FOLDS, EPOCHS]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
