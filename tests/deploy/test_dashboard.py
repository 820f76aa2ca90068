"""The dashboard and the alerts ask for metrics there are, in the way these may be asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from bo_service.api.metrics import exposition
from bo_service.domain.census import Census, Connections, Totals
from tests.deploy.compose import ROOT, load_compose


@dataclass(frozen=True)
class Metric:
    """What `/metrics` tells under one name."""

    kind: Literal["counter", "gauge", "histogram"]
    counted_by: Literal["process", "database"]
    """What a process counts is added up; what the database counts is the same from every process."""
    labels: dict[str, set[str] | None] = field(default_factory=dict)
    """Values where they are few."""


ANY = None
BY_SURROGATE = {"surrogate": ANY, "device": ANY}
METRICS = {
    "bo_http_requests_total": Metric("counter", "process", {"method": ANY, "route": ANY, "status": ANY}),
    "bo_http_request_seconds": Metric("histogram", "process", {"method": ANY, "route": ANY}),
    "bo_claims_total": Metric("counter", "process", {"outcome": {"given", "waiting", "none"}}),
    "bo_tells_total": Metric("counter", "process", {"state": ANY}),
    "bo_waiting_claims": Metric("gauge", "process"),
    "bo_database_connections": Metric("gauge", "process", {"state": {"in_use", "idle", "limit"}}),
    "bo_events_total": Metric("counter", "database", {"kind": ANY}),
    "bo_fits_total": Metric("counter", "database", BY_SURROGATE),
    "bo_fit_fallbacks_total": Metric("counter", "database", BY_SURROGATE),
    "bo_fit_seconds_total": Metric("counter", "database", BY_SURROGATE),
    "bo_leases_expired_total": Metric("counter", "database"),
    "bo_job_crashes_total": Metric("counter", "database", {"surrogate": ANY}),
    "bo_llm_calls_total": Metric("counter", "database", {"model": ANY}),
    "bo_llm_tokens_total": Metric("counter", "database", {"model": ANY, "kind": {"prompt", "completion"}}),
    "bo_llm_cost_total": Metric("counter", "database", {"model": ANY}),
    "bo_llm_seconds_total": Metric("counter", "database", {"model": ANY}),
    "bo_studies": Metric("gauge", "database", {"state": ANY}),
    "bo_trials": Metric("gauge", "database", {"state": ANY}),
    "bo_jobs": Metric("gauge", "database", {"queue": ANY, "state": {"due", "resting", "running"}}),
    "bo_job_oldest_seconds": Metric("gauge", "database", {"queue": ANY}),
    "bo_suggestions": Metric("gauge", "database", {"freshness": {"fresh", "stale"}}),
    "bo_processes": Metric("gauge", "database", {"role": {"relay", "compute"}}),
    "bo_breakers_open": Metric("gauge", "database"),
    "bo_webhook_deliveries": Metric("gauge", "database", {"state": {"waiting", "given_up"}}),
    "bo_pushes_waiting": Metric("gauge", "database"),
}

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "bo-service.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"][0]["rules"]

KNOWN_TO_PROMETHEUS = {"sum", "max", "rate", "by", "or", "vector", "absent", "histogram_quantile", "le", "up"}
SELECTOR = re.compile(r"(?P<name>[a-z_]\w*)(?P<matchers>\{[^}]*\})?(?P<range>\[[^]]*\])?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@dataclass(frozen=True)
class Use:
    """One place where an expression names a metric."""

    name: str
    metric: Metric
    part: str
    matchers: list[tuple[str, str, str]]
    has_range: bool
    before: str


def without_matchers(expression: str) -> str:
    return re.sub(r"\{[^}]*\}|\[[^]]*\]", "", expression)


def uses(expression: str) -> Iterator[Use]:
    for found in SELECTOR.finditer(expression):
        if not found["name"].startswith("bo_"):
            continue
        base = re.sub(r"_(bucket|sum|count)$", "", found["name"])
        name = base if base in METRICS and METRICS[base].kind == "histogram" else found["name"]
        assert name in METRICS, f"{found['name']} is no metric of ours"
        yield Use(
            name,
            METRICS[name],
            found["name"].removeprefix(name),
            MATCHER.findall(found["matchers"] or ""),
            bool(found["range"]),
            expression[: found.start()],
        )


def expressions() -> list[Any]:
    targets = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    alerts = [(rule["alert"], rule["expr"]) for rule in ALERTS]
    return [pytest.param(expr, id=f"{title}-{i}") for i, (title, expr) in enumerate(targets + alerts)]


every_expression = pytest.mark.parametrize("expression", expressions())


@every_expression
def test_an_expression_names_known_metrics_and_labels(expression: str) -> None:
    found = list(uses(expression))
    assert found or "up{" in expression
    for use in found:
        for label, operator, value in use.matchers:
            assert label in use.metric.labels, f"{use.name} has no label {label}"
            known = use.metric.labels[label]
            if known is not None and operator == "=":
                assert value in known, f"{label} of {use.name} is never {value}"
    words = set(re.findall(r"[a-z_]\w*", without_matchers(expression)))
    labels = {label for use in found for label in use.metric.labels} | {"instance"}
    strangers = {word for word in words if not word.startswith("bo_")} - KNOWN_TO_PROMETHEUS - labels
    assert not strangers


@every_expression
def test_counters_are_read_as_rates_and_gauges_as_they_are(expression: str) -> None:
    for use in uses(expression):
        is_rated = use.before.endswith("rate(")
        assert is_rated == use.has_range == (use.metric.kind != "gauge"), use.name
        assert (use.metric.kind == "histogram") == (use.part in ("_bucket", "_sum", "_count"))


@every_expression
def test_what_every_process_tells_alike_is_not_added_up(expression: str) -> None:
    """A second API process must not double the number of studies, nor halve that of requests."""
    for use in uses(expression):
        inner = re.findall(r"(sum|max)(?: by \([^)]*\))? ?\((?:rate\()?$", use.before)
        wanted = {"database": {"max"}, "process": {"sum", "max"}}[use.metric.counted_by]
        assert inner, f"{use.name}: every process tells its own"
        assert inner[-1] in wanted, f"{use.name} is the same from every process"


@every_expression
def test_an_expression_is_balanced_and_groups_by_labels_there_are(expression: str) -> None:
    depth = 0
    for character in without_matchers(expression):
        depth += {"(": 1, ")": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    labels = {label for use in uses(expression) for label in use.metric.labels} | {"le", "instance"}
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= labels
    if "histogram_quantile" in expression:
        assert re.search(r"by \([^)]*\ble\b[^)]*\)", expression)


def test_a_legend_shows_labels_the_expression_keeps() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {
                word.strip() for g in re.findall(r"by \(([^)]*)\)", target["expr"]) for word in g.split(",")
            }
            assert shown <= kept, panel["title"]


def test_the_metrics_are_those_the_service_tells() -> None:
    text = exposition(Census(), Totals(), Connections(n_in_use=0, n_idle=0, limit=1)).decode()
    told = dict(re.findall(r"^# TYPE (bo_\w+) (\w+)$", text, flags=re.MULTILINE))
    assert told == {name: metric.kind for name, metric in METRICS.items()}


def test_every_metric_has_a_panel() -> None:
    shown = {use.name for panel in PANELS for target in panel["targets"] for use in uses(target["expr"])}
    assert shown == set(METRICS)


def test_the_panels_have_names_places_and_explanations_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert all(panel["description"].endswith(".") for panel in PANELS)


def test_what_somebody_should_act_on_has_thresholds() -> None:
    with_threshold = {
        panel["title"] for panel in PANELS if len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1
    }
    assert with_threshold >= {
        *("Compute workers", "Relays", "Oldest due job", "Breakers open", "Server errors", "p99 by route"),
        *(
            "Jobs by queue",
            "Fallback share",
            "Seconds a fit",
            "Pool in use",
            "Leases expired and jobs crashed",
        ),
    }


def test_an_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]
        assert re.fullmatch(r"\d+m", rule["for"])


def test_the_data_source_and_the_dashboard_are_where_grafana_looks() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "bo-service.yml").read_text())["providers"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    services = load_compose().services
    assert source["url"] == "http://prometheus:9090"
    mounts = [volume.split(":")[1] for volume in services["grafana"].raw["volumes"]]
    assert f"{provider['options']['path']}/bo-service.json" in mounts
    assert "/etc/grafana/provisioning" in mounts


def test_prometheus_asks_the_api_with_its_key_and_finds_the_alerts() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    service = load_compose().services["prometheus"]
    targets = {secret.target for secret in service.secrets}
    assert job["authorization"]["credentials_file"].removeprefix("/run/secrets/") in targets
    (found,) = job["dns_sd_configs"]
    (host,) = found["names"]
    assert str(found["port"]) == load_compose().services[host].option("--port")
    mounts = [volume.split(":")[1] for volume in service.raw["volumes"]]
    assert {f"/etc/prometheus/{name}" for name in config["rule_files"]} <= set(mounts)
    assert "--config.file=/etc/prometheus/prometheus.yml" in service.command
