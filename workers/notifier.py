"""Delivers webhooks beside the reaper, in the compute child or in a relay; a slow receiver holds up nobody else."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bo_service.bootstrap import Services
from bo_service.domain.ids import WebhookId
from bo_service.domain.signing import MasterKey
from bo_service.domain.target import AllowList
from bo_service.domain.webhook import DueWebhook
from bo_service.master_key import master_key
from bo_service.orchestrator.deliver import Send, deliver_next, webhooks_due
from bo_service.orchestrator.ports import UnitOfWork
from bo_service.receivers import Receivers
from workers.house import guarded
from workers.post import Poster

POLL_SECONDS: Final = 1.0
N_SENDERS: Final = 4
"""Messages one process sends at the same time, each to another webhook."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Notifier:
    """Looks for due deliveries and sends each from a thread; of one webhook one at a time."""

    uow: UnitOfWork
    send: Send
    key: Callable[[], MasterKey | None]
    _stopping: threading.Event = field(default_factory=threading.Event)
    _has_news: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _serving: dict[WebhookId, DueWebhook] = field(default_factory=dict)
    _has_warned: bool = False

    def start(self) -> None:
        """Start looking."""
        threading.Thread(target=self._run, name="notifier", daemon=True).start()

    def stop(self) -> None:
        """Begin nothing new; what is under way may end, or is sent by another process later."""
        self._stopping.set()
        self._has_news.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._has_news.clear()
            guarded(self.round, what="looking for due deliveries")
            self._has_news.wait(POLL_SECONDS)

    def round(self) -> list[threading.Thread]:
        """Give every free sender a webhook that has something due; returns the senders that began."""
        with self._lock:
            serving = list(self._serving.values())
        due = webhooks_due(serving=serving, n_senders=N_SENDERS, uow=self.uow)
        if not due:
            return []
        master = self.key()
        if master is None:
            self._warn()
            return []
        senders = []
        for webhook in due:
            with self._lock:
                self._serving[webhook.id] = webhook
            sender = threading.Thread(
                target=self._serve, args=(webhook.id, master), name="sender", daemon=True
            )
            try:
                sender.start()
            except RuntimeError:
                # no room for a thread: the webhook is still due, and is served in a later round
                self._release(webhook.id)
                raise
            senders.append(sender)
        return senders

    def _serve(self, webhook_id: WebhookId, master: MasterKey) -> None:
        deliver = partial(
            deliver_next,
            webhook_id,
            send=self.send,
            master=master,
            jitter=random.random(),
            uow=self.uow,
        )
        has_sent = guarded(deliver, what=f"delivering to webhook {webhook_id}")
        self._release(webhook_id)
        if has_sent:
            # there may be more for it; after a failure of ours the next look comes soon enough
            self._has_news.set()

    def _release(self, webhook_id: WebhookId) -> None:
        with self._lock:
            del self._serving[webhook_id]

    def _warn(self) -> None:
        if not self._has_warned:
            logger.warning("webhooks wait: without BO_SECRET_KEY this process cannot sign for them")
            self._has_warned = True


def notifier_of(services: Services) -> Notifier:
    """The notifier of a process with these services. Raises: Invalid where BO_WEBHOOK_ALLOW is wrong."""
    settings = services.settings
    poster = Poster(Receivers(AllowList.of(settings.webhook_allow)))
    return Notifier(uow=services.uow, send=poster, key=partial(master_key, settings))
