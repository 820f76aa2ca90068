"""A prepared configuration that nobody has taken yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from bo_service.domain.ids import StudyId, SuggestionId, TrialId
from bo_service.domain.proposal import Parameters
from bo_service.domain.trial import Provenance


class SuggestionState(StrEnum):
    """PREPARED -> CLAIMED | SUPERSEDED | CANCELLED."""

    PREPARED = "PREPARED"
    CLAIMED = "CLAIMED"
    SUPERSEDED = "SUPERSEDED"
    CANCELLED = "CANCELLED"


class SuggestionSource(StrEnum):
    """Who made it: the study's generator or a user."""

    GENERATED = "generated"
    ENQUEUED = "enqueued"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """PREPARED -> CLAIMED (became a trial) | SUPERSEDED (newer ones written) | CANCELLED (by a user)."""

    id: SuggestionId
    study_id: StudyId
    state: SuggestionState = SuggestionState.PREPARED
    source: SuggestionSource = SuggestionSource.GENERATED
    parameters: Parameters
    provenance: Provenance
    data_version: int
    """Made from the data of this version."""
    is_timeless: bool = False
    """Made without looking at data, so it never grows stale."""
    fixed_key: str = ""
    """Digest of the fixed values it was made for; empty for none."""
    position: int = 0
    """Index among the candidates of its fit."""
    trial_id: TrialId | None = None
    created_at: datetime

    def is_fresh(self, *, data_version: int, staleness: int) -> bool:
        """Whether it may be given out at this data version."""
        return self.is_timeless or data_version - self.data_version <= staleness

    def moved_to(self, state: SuggestionState, *, trial_id: TrialId | None = None) -> Suggestion:
        return replace(self, state=state, trial_id=trial_id)
