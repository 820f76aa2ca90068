"""The OpenAPI document tells the truth: what each route answers, refuses and leads to. Nothing here runs on a request.

A route's decorator names its operation and its answers (`says`); what all routes have in common, problem documents,
keys, headers, is added when the document is built (`document`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from pydantic import BaseModel

from bo_service.api.answers import FieldProblem, Problem

METHODS: Final = ("get", "put", "post", "patch", "delete")

OPEN_PATHS: Final = ("/healthz", "/readyz")
"""Answered without a key."""

CONTRADICTABLE: Final = ("/v1/suggestions/{suggestion}",)
"""Routes without a body whose change may come too late."""

NAMES_A_STUDY: Final = ("/v1/webhooks",)
"""Routes whose body may name something that does not exist."""

REFUSALS: Final = {
    401: "no valid API key came with the request",
    403: "the key's scope does not reach this far",
    404: "no such thing in the key's project",
    409: "the request contradicts what is recorded",
    413: "the body is larger than BO_MAX_BODY_MEGABYTES, that of an import larger than BO_MAX_IMPORT_MEGABYTES",
    422: "the fields at fault are named",
    429: "the key or the address asks too often",
    500: "a defect; see the service's log",
    503: "try again after Retry-After",
}

RETRY_AFTER: Final = {
    "description": "seconds to wait before the next try",
    "schema": {"type": "integer", "minimum": 0},
}
REPLAYED: Final = {
    "description": "`true` where this is the stored answer to an earlier request with the same Idempotency-Key",
    "schema": {"type": "string", "enum": ["true"]},
}
IDEMPOTENCY_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "the same key with the same request acts once and is answered alike",
    "schema": {"type": "string", "minLength": 1, "maxLength": 256},
}


def says(
    operation: str,
    answer: type[BaseModel] | None,
    *,
    status: int = 200,
    also: Mapping[int, type[BaseModel]] | None = None,
    media: Mapping[str, str | type[BaseModel]] | None = None,
    reads: Mapping[str, str] | None = None,
    is_once: bool = False,
    is_lasting: bool = True,
    leads_to: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a route's decorator takes: its name in clients, its answers, and the operations they lead to.

    `answer` is the body on `status`, `also` the bodies on other statuses. Instead of a JSON body, `media` describes
    what is sent by media type; `reads` does so for a body the route reads itself. `is_once` routes take an
    Idempotency-Key; `is_lasting` ones keep every success under it (a 202 never is).
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for code, model in {status: answer, **(also or {})}.items():
        responses[code] = {"model": model} if model is not None else {"content": _texts(media or {})}
        responses[code]["description"] = _sentence(model) if model is not None else "as the media type says"
        if code == 202:
            responses[code]["headers"] = {"Retry-After": RETRY_AFTER}
        elif is_once and is_lasting:
            responses[code]["headers"] = {"Idempotency-Replayed": REPLAYED}
    if leads_to:
        responses[status]["links"] = dict(leads_to)
    extra: dict[str, Any] = {"x-once": True, "parameters": [IDEMPOTENCY_KEY]} if is_once else {}
    if reads:
        extra["requestBody"] = {"required": True, "content": _texts(reads)}
    found = {
        "operation_id": operation,
        "status_code": status,
        "responses": responses,
        "openapi_extra": extra or None,
    }
    # a class without a media type of its own, so that JSON is not promised too
    return found if media is None else found | {"response_class": Response}


def leads(operation: str, *, body: Mapping[str, Any] | None = None, **parameters: str) -> dict[str, Any]:
    """An OpenAPI link: this answer's fields are that operation's parameters, written as paths such as `/id`."""
    link: dict[str, Any] = {
        "operationId": operation,
        "parameters": {name: f"$response.body#{path}" for name, path in parameters.items()},
    }
    return link | ({"requestBody": dict(body)} if body else {})


def from_path(operation: str, **parameters: str) -> dict[str, Any]:
    """An OpenAPI link that hands parameters of this route's own path on."""
    return {
        "operationId": operation,
        "parameters": {name: f"$request.path.{given}" for name, given in parameters.items()},
    }


def _texts(media: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"schema": _text_schema(what)} for name, what in media.items()}


def _text_schema(what: str | type[BaseModel]) -> dict[str, Any]:
    """Of a text described in words, or of the pieces it consists of."""
    return {"type": "string", "description": what} if isinstance(what, str) else what.model_json_schema()


def _sentence(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def document(app: FastAPI) -> None:
    """Let the application describe itself in full."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for stranger in ("HTTPValidationError", "ValidationError"):
        schemas.pop(stranger, None)
    for model in (FieldProblem, Problem):
        found = model.model_json_schema(ref_template="#/components/schemas/{model}")
        found.pop("$defs", None)
        schemas[model.__name__] = found
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "an API key"}}
    for path, item in schema["paths"].items():
        for method in METHODS:
            if method in item:
                _complete(item[method], path)
    return schema


def _complete(operation: dict[str, Any], path: str) -> None:
    """Add what every route of this kind has: the key, and the problem documents it may answer with."""
    statuses = {500, 503}
    if "parameters" in operation or "requestBody" in operation:
        statuses |= {422}
    if path not in OPEN_PATHS:
        operation["security"] = [{"key": []}]
        statuses |= {401, 403, 429}
    if "{" in path or (path in NAMES_A_STUDY and "requestBody" in operation):
        statuses |= {404}
    if "requestBody" in operation:
        statuses |= {413}
    if operation.pop("x-once", False) or "requestBody" in operation or path in CONTRADICTABLE:
        statuses |= {409}
    responses = operation["responses"]
    for status in sorted(statuses):
        # what a route says itself of a status stands
        if str(status) not in responses or status == 422:
            responses[str(status)] = _refusal(status)


def _refusal(status: int) -> dict[str, Any]:
    refusal: dict[str, Any] = {
        "description": REFUSALS[status],
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in (429, 503):
        refusal["headers"] = {"Retry-After": RETRY_AFTER}
    return refusal
