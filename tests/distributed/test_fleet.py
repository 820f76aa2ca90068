"""The loop across processes: PostgreSQL, Redis, API, relay and a Celery worker, each its own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bo_service.bootstrap import build_services
from bo_service.client import Client
from bo_service.domain.ids import JobId, LeaseToken, StudyId
from bo_service.domain.job import Job, JobKind, JobState, Queue
from bo_service.orchestrator.reap import claim_job
from bo_service.settings import Settings
from tests.collector import TRACE, TRACEPARENT, collecting
from tests.distributed.conftest import Fleet, RedisServer
from tests.receiver import Receiver, listening
from tests.skewed import wrong_clock
from tests.sleeping import installed
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.postgres]


def evaluate(client: Client, name: str, n: int, *, worker: str = "w") -> list[str]:
    """Evaluate trials by hand; returns the generators of their suggestions."""
    generators = []
    deadline = time.monotonic() + 120
    while len(generators) < n and time.monotonic() < deadline:
        for trial in client.claim(name, worker, wait_seconds=5).trials:
            client.complete(trial, {"loss": (trial.parameters["x"] - 0.3) ** 2})
            generators.append(trial.raw["provenance"]["generator"])
    assert len(generators) == n
    return generators


def test_a_study_runs_across_processes(fleet: Fleet, make_spec) -> None:
    api = fleet.api()
    fleet.relay()
    fleet.compute()
    with Client(api.url, api.key) as client:
        study = client.create_study(make_spec(surrogate={"name": "gp"}, initial={"size": 3}))
        generators = evaluate(client, study.name, 8)
    assert generators[-1].startswith("gp:")


def test_a_fit_of_the_fleet_belongs_to_the_trace_of_the_request_that_caused_it(
    fleet: Fleet, make_spec
) -> None:
    """The job's row carries the trace; the message that wakes the worker carries nothing."""
    with collecting() as collector:
        fleet.environment |= collector.environment
        api = fleet.api()
        fleet.relay()
        fleet.compute()
        with api.http() as http:
            made = http.post("/v1/studies", json=make_spec(), headers={"traceparent": TRACEPARENT})
        wanted = {"POST /v1/studies", "bo.advance", "bo.propose"}
        until(lambda: wanted <= collector.of_trace(TRACE).keys(), "the spans")
        spans, senders = collector.of_trace(TRACE), collector.senders_of(TRACE)
        assert senders["POST /v1/studies"] == "bo-service-api"
        assert senders["bo.advance"] == senders["bo.propose"] == "bo-service-compute"
        assert spans["bo.advance"].parent_span_id == spans["POST /v1/studies"].span_id
        attributes = {a.key: a.value.string_value for a in spans["bo.advance"].attributes}
        assert attributes["bo.study"] == made.json()["id"]


def test_a_rescue_by_the_relay_belongs_to_the_trace_of_the_fit_it_stands_in_for(
    fleet: Fleet, make_spec
) -> None:
    with collecting() as collector:
        fleet.environment |= collector.environment | {"BO_FIT_DEADLINE_SECONDS": "0.5"}
        api = fleet.api()
        with api.http() as http:
            made = http.post("/v1/studies", json=make_spec(), headers={"traceparent": TRACEPARENT})
        services = build_services(fleet.settings)
        assert claim_job(LeaseToken("a fit without end"), lease_seconds=60, uow=services.uow)
        services.close()
        fleet.relay()
        with Client(api.url, api.key) as client:
            (trial,) = client.claim(made.json()["id"], "w", wait_seconds=20).trials
        assert trial.raw["provenance"]["fallback_reason"]
        until(lambda: {"bo.rescue", "bo.propose"} <= collector.of_trace(TRACE).keys(), "the spans")
        assert collector.senders_of(TRACE)["bo.rescue"] == "bo-service-relay"


def test_redis_flushed_and_restarted_loses_nothing(
    fleet: Fleet, redis_server: RedisServer, make_spec
) -> None:
    api = fleet.api()
    fleet.relay()
    fleet.compute()
    with Client(api.url, api.key) as client:
        study = client.create_study(make_spec(surrogate={"name": "gp"}, initial={"size": 2}))
        evaluate(client, study.name, 3)
        redis_server.flush()
        evaluate(client, study.name, 3)
        redis_server.kill()
        redis_server.start()
        evaluate(client, study.name, 3)


@pytest.mark.parametrize("hours", [-3, 3])
def test_machines_with_wrong_clocks_work_together(
    fleet: Fleet, make_spec, tmp_path: Path, hours: int
) -> None:
    api = fleet.api()
    fleet.relay(**wrong_clock(tmp_path, seconds=-1800 * hours))
    fleet.compute(**wrong_clock(tmp_path, seconds=3600 * hours))
    with Client(api.url, api.key) as client:
        study = client.create_study(make_spec(retry={"lease_seconds": 5}))
        # more than one job's worth of suggestions
        evaluate(client, study.name, 40)
        (lost,) = client.claim(study.name, "silent", wait_seconds=30).trials
        until(lambda: client.trial(lost.id).state == "QUEUED", "the end of a lease, by the server's clock")
    assert "Traceback" not in fleet.log("relay")


def test_a_full_queue_takes_no_more_and_one_that_nobody_made_does(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    from workers import celery_app

    monkeypatch.setattr(celery_app, "FULL", 3)
    sender = celery_app.make_sender(Settings(broker_url=redis_server.url))
    now = datetime.now(UTC)
    job = Job(
        id=JobId("j"),
        study_id=StudyId("s"),
        kind=JobKind.ADVANCE,
        state=JobState.QUEUED,
        ready_at=now,
        created_at=now,
        updated_at=now,
    )
    with redis.Redis.from_url(redis_server.url) as broker:
        for _ in range(5):
            celery_app.send(job, Queue.CPU, through=sender)
        assert broker.llen("cpu") == 3
        broker.flushall()
        celery_app.send(job, Queue.CPU, through=sender)
        assert broker.llen("cpu") == 1


def test_two_relays_send_each_job_once(fleet: Fleet, redis_server: RedisServer, make_spec) -> None:
    import redis

    api = fleet.api()
    fleet.relay("one", BO_JOB_RESEND_SECONDS="600")
    fleet.relay("two", BO_JOB_RESEND_SECONDS="600")
    with Client(api.url, api.key) as client, redis.Redis.from_url(redis_server.url) as broker:
        for _ in range(30):
            client.create_study(make_spec())
        until(lambda: broker.llen("cpu") == 30, "thirty messages")
        time.sleep(2)
        assert broker.llen("cpu") == 30


def test_two_relays_share_the_webhooks_and_send_each_message_once(fleet: Fleet, make_spec) -> None:
    fleet.environment |= {"BO_SECRET_KEY": "k" * 40, "BO_WEBHOOK_ALLOW": '["127.0.0.1"]'}
    api = fleet.api()
    fleet.relay("one")
    fleet.relay("two")
    with listening(Receiver(seconds=0.05)) as receiver, Client(api.url, api.key) as client:
        made = [client.webhooks.create(receiver.url, kinds=["study_finished"]) for _ in range(5)]
        for _ in range(8):
            client.stop(client.create_study(make_spec()).id)
        until(lambda: len(receiver.messages) >= 40, "forty messages")
        time.sleep(3)
        assert len(receiver.messages) == len({message.id for message in receiver.messages}) == 40
        secrets = [webhook["secret"] for webhook in made]
        assert all(any(m.is_signed_by(secret) for secret in secrets) for m in receiver.messages)
    assert "k" * 40 not in fleet.log("one") + fleet.log("two")


GPU_MODULE = """
from dataclasses import replace
from surrogates.gp.plugin import plugin as gp

plugin = replace(gp, name="heavy", abilities=replace(gp.abilities, queue="gpu"))
"""


def test_a_gpu_study_runs_on_a_cpu_worker_until_a_gpu_worker_is_there(
    fleet: Fleet, redis_server: RedisServer, make_spec, tmp_path: Path
) -> None:
    import redis

    fleet.environment |= installed(tmp_path, "heavy", GPU_MODULE)
    api = fleet.api()
    fleet.relay()
    fleet.compute("small")
    with Client(api.url, api.key) as client:
        study = client.create_study(make_spec(surrogate={"name": "heavy"}, initial={"size": 2}))
        assert evaluate(client, study.name, 4)[-1].startswith("heavy:")
        fit = next(f for f in client.fits(study.id) if f["diagnostics"].get("outcomes"))
        assert (fit["device"], fit["diagnostics"]["slower"]) == ("cpu", "made for a GPU, fitted on a CPU")
        fleet.start("large", "compute", "--queues", "gpu", "--devices", "cpu", "--name", "large")
        until(lambda: len(client.status()["processes"]) == 3, "the second worker")
        fleet.processes["small"].terminate()
        evaluate(client, study.name, 3, worker="other")
        told_to_stop = fleet.processes["large"]
        told_to_stop.terminate()
        told_to_stop.wait(30)
        with redis.Redis.from_url(redis_server.url) as broker:
            client.create_study(make_spec(surrogate={"name": "heavy"}))
            # the first study may have left a job, too, and messages come again
            until(lambda: broker.llen("gpu") >= 1, "a message in the queue gpu")


def test_a_message_goes_where_somebody_serves_it() -> None:
    from bo_service.orchestrator.relay_jobs import route

    assert route(Queue.GPU, {Queue.CPU}) is Queue.CPU
    assert route(Queue.GPU, {Queue.CPU, Queue.GPU}) is Queue.GPU
    assert route(Queue.GPU, set()) is Queue.GPU
    assert route(Queue.LLM, {Queue.GPU}) is Queue.LLM


def test_several_api_processes_act_as_one(fleet: Fleet, make_spec) -> None:
    """Children of one parent share the compute child, the replies to a key and the key that signs.

    What one hears of another is in test_two_processes.py.
    """
    allowed = {"BO_WEBHOOK_ALLOW": '["127.0.0.1"]'}
    fleet.environment |= {"TEST_API_PROCESSES": "3", "BO_COMPUTE": "embedded"} | allowed
    api = fleet.api()
    spec = make_spec(surrogate={"name": "gp"}, initial={"size": 2})
    with Client(api.url, api.key) as client:
        study = client.create_study(spec)
        assert evaluate(client, study.name, 6)[-1].startswith("gp:")
    claims = []
    for _ in range(12):
        # a connection each: the kernel spreads them over the processes
        with api.http() as http:
            reply = http.post(
                f"/v1/studies/{study.id}/trials",
                json={"worker": "same", "wait_seconds": 10, "reclaim": False},
                headers={"Idempotency-Key": "once"},
            )
            claims.append(reply.json()["trials"][0]["id"])
    assert len(set(claims)) == 1
    with listening(Receiver()) as receiver:
        with api.http() as http:
            made = http.post("/v1/webhooks", json={"url": receiver.url}).json()
            http.post(f"/v1/webhooks/{made['id']}/test")
        # they share the key of their machine with the compute process that sends
        assert receiver.wait(1)[0].is_signed_by(made["secret"])
