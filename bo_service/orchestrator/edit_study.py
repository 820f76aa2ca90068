"""Later edits: what keeps the meaning of old data is done, everything else is refused with a hint to branch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError

from bo_service.domain.errors import Invalid, MeaningChanged
from bo_service.domain.free_json import MAX_NUMBER
from bo_service.domain.ids import ProjectId
from bo_service.domain.records import Event, EventKind
from bo_service.domain.spec import StudySpec
from bo_service.domain.study import Study
from bo_service.domain.validation import problems_in
from bo_service.orchestrator.bookkeeping import request_compute
from bo_service.orchestrator.create_study import check_spec
from bo_service.orchestrator.ports import UnitOfWork
from surrogates.errors import Problem

FREE_FIELDS: Final = (
    "stopping",
    "parallelism",
    "retry",
    "surrogate",
    "acquisition",
    "staleness",
    "push",
    "metadata",
)
MODEL_FIELDS: Final = ("surrogate", "acquisition")
WIDENABLE: Final = {
    "float": ("low", "high"),
    "int": ("low", "high"),
    "categorical": ("choices",),
    "ordinal": ("levels",),
    "mixture": ("components",),
}


def edit_study(
    study_key: str, changes: Mapping[str, Any], *, project_id: ProjectId, uow: UnitOfWork
) -> Study:
    """Apply the changes together, or none. A free field is replaced as a whole, `stopping` and `retry` field by field.

    Raises: NotFound, Invalid, MeaningChanged, StudyClosed.
    """
    with uow() as store:
        study = store.studies.find(project_id, study_key, lock=True)
        study.require_open()
        edited = edited_spec(study.spec, changes)
        if edited == study.spec:
            return study
        now = store.now()
        is_for_model = "widen" in changes or any(field in changes for field in MODEL_FIELDS)
        changed = replace(
            study,
            spec=edited,
            spec_version=study.spec_version + 1,
            data_version=study.data_version + int(is_for_model),
            breaker_reason=None if is_for_model else study.breaker_reason,
            breaker_opened_at=None if is_for_model else study.breaker_opened_at,
            updated_at=now,
        )
        store.studies.save_spec(changed)
        store.records.add_event(
            Event(
                study_id=study.id,
                kind=EventKind.STUDY_CHANGED,
                payload={
                    "fields": sorted(changes),
                    "spec_version": changed.spec_version,
                    # a replay of an older suggestion reads it back
                    "previous_spec": study.spec.model_dump(mode="json"),
                },
                at=now,
            )
        )
        if edited.surrogate.name != study.spec.surrogate.name:
            # what another generator prepared would stand in front of the new one's
            store.suggestions.supersede(
                study.id, before_version=changed.data_version, including_timeless=True
            )
        if edited.push != study.spec.push:
            # messages on their way name what was
            store.pushes.withdraw(study.id, including_taken=edited.push is None)
        request_compute(changed, store=store, now=now)
        store.commit()
    return changed


def edited_spec(spec: StudySpec, changes: Mapping[str, Any]) -> StudySpec:
    """The specification with these changes. Raises: Invalid, MeaningChanged."""
    refused = [field for field in changes if field not in FREE_FIELDS and field != "widen"]
    known = [field for field in refused if field in StudySpec.model_fields]
    if known:
        raise MeaningChanged([Problem(field, "cannot change once a study exists") for field in known])
    if refused:
        allowed = ", ".join(("widen", *FREE_FIELDS))
        raise Invalid([Problem(field, "is not an edit", f"edits: {allowed}") for field in refused])
    wire = spec.model_dump(mode="json")
    for field in FREE_FIELDS:
        if field in changes:
            partial = field in ("stopping", "retry") and isinstance(changes[field], Mapping)
            wire[field] = {**wire[field], **changes[field]} if partial else changes[field]
    _widen(wire["parameters"], changes.get("widen", {}))
    try:
        edited = StudySpec.model_validate(wire)
    except ValidationError as error:
        raise Invalid(problems_in(error)) from error
    check_spec(edited)
    return edited


def _widen(parameters: list[dict[str, Any]], widen: Any) -> None:
    """Change ranges in place. Raises: Invalid, MeaningChanged where one would shrink."""
    if not isinstance(widen, Mapping):
        raise Invalid([Problem("widen", "is not a mapping of parameter to new bounds")])
    by_name = {parameter["name"]: parameter for parameter in parameters}
    for name, bounds in widen.items():
        path = f"widen.{name}"
        if name not in by_name:
            raise Invalid([Problem(path, "is not a parameter of this study")])
        parameter = by_name[name]
        fields = WIDENABLE.get(parameter["type"], ())
        if not isinstance(bounds, Mapping) or not set(bounds) <= set(fields):
            raise Invalid(
                [
                    Problem(
                        path, f"a {parameter['type']} parameter widens by: {', '.join(fields) or 'nothing'}"
                    )
                ]
            )
        for field, value in bounds.items():
            if reason := _shrinks(parameter, field, value):
                raise MeaningChanged([Problem(f"{path}.{field}", reason, "a range may only grow")])
            parameter[field] = value


def _shrinks(parameter: Mapping[str, Any], field: str, value: Any) -> str | None:
    """Why the new value of a field would leave something out; None where it does not, or the schema will speak."""
    if field in ("low", "high"):
        return _bound_shrinks(parameter, field, value) if _is_number(value) else None
    if not isinstance(value, list):
        return None
    old = parameter[field]
    return _components_shrink(old, value) if field == "components" else _choices_shrink(field, old, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _bound_shrinks(parameter: Mapping[str, Any], field: str, value: float) -> str | None:
    old, step = parameter[field], parameter.get("step")
    if (value > old) if field == "low" else (value < old):
        return f"{value:g} would leave out values from {old:g}"
    if field == "low" and step is not None:
        n_steps = (old - value) / step
        if math.isinf(n_steps) or abs(n_steps - round(n_steps)) > 1e-9:
            return f"{value:g} shifts the grid of step {step:g}"
    return None


def _choices_shrink(field: str, old: list[Any], new: list[Any]) -> str | None:
    missing = [choice for choice in old if choice not in new]
    if missing:
        return f"leaves out {', '.join(map(repr, missing))}"
    if field == "levels" and [level for level in new if level in old] != old:
        return "changes the order of the levels"
    return None


def _components_shrink(old: list[dict[str, Any]], new: list[Any]) -> str | None:
    given = {
        component["name"]: component
        for component in new
        if isinstance(component, Mapping) and isinstance(component.get("name"), str)
    }
    if set(given) != {component["name"] for component in old}:
        return "adds or leaves out a component"
    for component in old:
        wider = given[component["name"]]
        low, high = wider.get("low", 0.0), wider.get("high", 1.0)
        if _is_number(low) and _is_number(high) and (low > component["low"] or high < component["high"]):
            return f"narrows the share of {component['name']}"
    return None
