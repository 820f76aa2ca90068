"""Trying again what stood in another transaction's way."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from bo_service.domain.errors import Contention

N_TRIES: Final = 5

T = TypeVar("T")


def retried(act: Callable[[], T]) -> T:
    """What the act returns, tried a few times where a deadlock or a serialization failure undid it.

    The act must be one transaction of its own. Raises: what it raises; Contention after the last try.
    """
    for attempt in range(1, N_TRIES):
        try:
            return act()
        except Contention:
            time.sleep(random.uniform(0.002, 0.02) * attempt)
    return act()
