"""`bo replay`: compute a suggestion again and say whether it is identical."""

from __future__ import annotations

import argparse
import json
import sys

from bo_service.bootstrap import build_services
from bo_service.domain.errors import ServiceError
from bo_service.domain.ids import SuggestionId
from bo_service.orchestrator.replay_suggestion import replay_suggestion
from bo_service.settings import Settings
from workers.tasks import generate


def main(arguments: list[str] | None = None) -> int:
    """Status 0 where the suggestion is identical, 1 where it is not or cannot be replayed."""
    parser = argparse.ArgumentParser(
        prog="bo replay", description="Compute a suggestion again from its data."
    )
    parser.add_argument("suggestion", help="id of the suggestion (a trial's suggestion_id)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(arguments)
    services = build_services(Settings())
    try:
        replay = replay_suggestion(SuggestionId(options.suggestion), uow=services.uow, generate=generate)
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    stored = replay.suggestion
    report = {
        "identical": replay.is_identical,
        "generator": stored.provenance.generator,
        "data_version": stored.data_version,
        "stored": {"parameters": stored.parameters, "acquisition_value": stored.provenance.acquisition_value},
        "recomputed": {"parameters": replay.recomputed, "acquisition_value": replay.acquisition_value},
    }
    if options.json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        verdict = "identical" if replay.is_identical else "NOT identical"
        sys.stdout.write(f"{verdict}: {report['generator']} at data version {report['data_version']}\n")
        sys.stdout.write(f"  stored     {report['stored']}\n  recomputed {report['recomputed']}\n")
    return 0 if replay.is_identical else 1


if __name__ == "__main__":
    sys.exit(main())
