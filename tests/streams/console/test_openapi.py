"""Schemathesis asks the API what its own OpenAPI document allows, and what it does not, and finds no breach."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import checks
from schemathesis.generation import GenerationMode

Fixture = Any
#: Requests of each operation and kind.
EXAMPLES = 4
checks.load_all_checks()
CHECKS = checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    ]
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "not allowed"])
def test_no_request_fails_or_breaks_the_document(scene: Fixture, serve: Fixture, mode: GenerationMode) -> None:
    scene.worker()
    scene.traffic()
    scene.attack()
    served = serve()
    schema = schemathesis.openapi.from_url(f"{served.url}/api/v1/openapi.json")
    asked: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @seed(7)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            case.call_and_validate(base_url=served.url, checks=CHECKS, timeout=60)
            asked.add(f"{case.method} {case.path}")

        ask()
    assert len(asked) > 15
