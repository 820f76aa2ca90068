"""`bo db upgrade` from several processes at once: one does the work, the others wait and find it done."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bo_service.bootstrap import database_revision, upgrade_database
from bo_service.settings import Settings
from bo_service.storage.upgrade_lock import alone

N_PROCESSES = 5

UPGRADE = """
import sys, time
from alembic.runtime.migration import MigrationContext
from bo_service.bootstrap import upgrade_database
from bo_service.settings import Settings
apply = MigrationContext.run_migrations
def slowly(self, **options):
    plan = self._migrations_fn
    def planned(heads, context):
        steps = plan(heads, context)
        time.sleep(0.5)  # another process would plan the same steps meanwhile
        for step in steps:
            print("step", flush=True)
        return steps
    self._migrations_fn = planned
    return apply(self, **options)
MigrationContext.run_migrations = slowly
print("ready", flush=True)
sys.stdin.readline()
upgrade_database(Settings())
"""
"""Runs the real upgrade, and says how many steps this process did."""

pytestmark = pytest.mark.slow


HOLD = """
import sys, time
from bo_service.storage.upgrade_lock import alone
with alone(sys.argv[1]):
    print('held', flush=True)
    time.sleep(600)
"""


def start(settings: Settings) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", UPGRADE],
        env=os.environ | {"BO_HOME": str(settings.home), "BO_DATABASE_URL": settings.database_url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("first", [None, "0001"], ids=["empty", "from 0001"])
def test_one_process_migrates_and_the_others_wait(empty_database: Settings, first: str | None) -> None:
    if first is not None:
        upgrade_database(empty_database, first)
    processes = [start(empty_database) for _ in range(N_PROCESSES)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in ends] == [0] * N_PROCESSES, "\n".join(err for _, err, _ in ends)
    n_steps = [out.count("step") for out, _, _ in ends]
    assert sum(n > 0 for n in n_steps) == 1, f"steps done by each process: {n_steps}"
    present, newest = database_revision(empty_database)
    assert present == newest


def test_a_process_that_waits_goes_on_when_the_one_before_it_is_killed(empty_database: Settings) -> None:
    url = empty_database.resolved_database_url()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiting = start(empty_database)
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "ready\n"
    waiting.stdin.write("go\n")
    waiting.stdin.flush()
    time.sleep(1.0)
    assert waiting.poll() is None
    assert database_revision(empty_database)[0] is None
    holder.kill()
    holder.communicate()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert "step" in out
    with alone(url):
        pass


KILLED = """
import os, signal
from alembic.operations import Operations
from bo_service.bootstrap import upgrade_database
from bo_service.settings import Settings
made = Operations.create_table
def then_die(self, name, *columns, **options):
    made(self, name, *columns, **options)
    if name == "audit_log":
        os.kill(os.getpid(), signal.SIGKILL)
Operations.create_table = then_die
upgrade_database(Settings())
"""


def test_a_migration_killed_in_its_midst_leaves_nothing_half_done(empty_database: Settings) -> None:
    environment = os.environ | {
        "BO_HOME": str(empty_database.home),
        "BO_DATABASE_URL": empty_database.database_url,
    }
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert done.returncode == -9
    upgrade_database(empty_database)
    present, newest = database_revision(empty_database)
    assert present == newest
