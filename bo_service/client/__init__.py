"""The Python client: typed, synchronous, safe to retry."""

from bo_service.client.client import Client
from bo_service.client.errors import (
    BadUrl,
    BoServiceError,
    LeaseLost,
    NotFound,
    Refused,
    SecretLost,
    StudyClosed,
    StudyDiffers,
    TrialClosed,
    Unreachable,
)
from bo_service.client.handle import Infeasible, TrialHandle
from bo_service.client.models import ClaimedTrial, Claims, Event, Heartbeat, Study, Suggestion, Trial
from bo_service.client.optimize import OptimizeResult
from bo_service.domain.spec import (
    InitialDesign,
    Metric,
    RetryPolicy,
    StoppingRules,
    StudySpec,
    SurrogateChoice,
)
from bo_service.domain.spec_parameters import (
    ActiveIf,
    BoolParameter,
    CategoricalParameter,
    FixedParameter,
    FloatParameter,
    IntParameter,
    MixtureComponent,
    MixtureParameter,
    OrdinalParameter,
)

__all__ = [
    "ActiveIf",
    "BadUrl",
    "BoServiceError",
    "BoolParameter",
    "CategoricalParameter",
    "ClaimedTrial",
    "Claims",
    "Client",
    "Event",
    "FixedParameter",
    "FloatParameter",
    "Heartbeat",
    "Infeasible",
    "InitialDesign",
    "IntParameter",
    "LeaseLost",
    "Metric",
    "MixtureComponent",
    "MixtureParameter",
    "NotFound",
    "OptimizeResult",
    "OrdinalParameter",
    "Refused",
    "RetryPolicy",
    "SecretLost",
    "StoppingRules",
    "Study",
    "StudyClosed",
    "StudyDiffers",
    "StudySpec",
    "Suggestion",
    "SurrogateChoice",
    "Trial",
    "TrialClosed",
    "TrialHandle",
    "Unreachable",
]
