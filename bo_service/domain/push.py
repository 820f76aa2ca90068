"""A trial announced by message to a fleet that evaluates objectives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from bo_service.domain.ids import PushId, StudyId, TrialId

LONGEST_WAIT: Final = timedelta(minutes=10)
"""A message is sent again at least this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Announced -> taken by a claim that got a trial -> gone with that trial's attempt; spent by a claim that got none.

    It holds one of its study's slots from first to last.
    """

    id: PushId
    study_id: StudyId
    created_at: datetime
    sent_at: datetime
    """When its message was last sent."""
    trial_id: TrialId | None = None
    """The trial that is evaluated under it; None while it is only announced."""

    @property
    def is_announced(self) -> bool:
        return self.trial_id is None

    def is_overdue(self, *, now: datetime, resend_after: timedelta) -> bool:
        """Whether its message should be sent again: after a while, then after twice as long each time.

        A fleet that is busy for a day would else find a day of messages.
        """
        waited = min(max(resend_after, self.sent_at - self.created_at), max(LONGEST_WAIT, resend_after))
        return self.is_announced and now - self.sent_at > waited
