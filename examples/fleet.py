"""A Celery application of your own whose workers also evaluate trials that bo-service pushes to them.

The workers need the broker (BO_BROKER_URL), the service (BO_URL) and a key of scope worker (BO_API_KEY):

    cd examples
    celery --app fleet worker --queues objectives --concurrency 4

A study names the objective, and how many trials may be under way:

    "push": {"objective": "fleet:bowl", "slots": 4}
"""

from __future__ import annotations

import os

from celery import Celery

from bo_service.client import TrialHandle
from workers.pushed import register


def bowl(trial: TrialHandle) -> float:
    """Anything that takes a trial and returns a number, or a mapping of metrics."""
    return (float(trial["x"]) - 0.3) ** 2


app = Celery("fleet", broker=os.environ["BO_BROKER_URL"])
# a message waits in the queue, where any process may take it, and not in front of a busy one
app.conf.worker_prefetch_multiplier = 1

register(app, {"fleet:bowl": bowl})


@app.task
def something_else(name: str) -> str:
    """Your own tasks stay what they are."""
    return f"hello {name}"
