"""A real worker with the counting scorer: ``python -m tests.streams.worker.worker_main CONFIG``.

HANG=1 makes scoring hang for good; WITHOUT_TOPIC_ID=1 stands for a broker that tells no topic ids.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from detectors.contract import Batch, Verdicts
from streams import config
from streams.errors import VedetteError
from streams.worker import app, broker, reader
from tests.streams.worker.counting import CountingScorer, load


class Hanging(CountingScorer):
    """Never comes back."""

    def score(self, batch: Batch, state: object) -> Verdicts:
        threading.Event().wait()
        return super().score(batch, state)


def hanging(path: Path) -> CountingScorer:
    found = load(path)
    return Hanging(found.schema.width, len(found.schema.classes))


def main() -> int:
    if "WITHOUT_TOPIC_ID" in os.environ:
        asked = broker.topic_id

        def nameless(kafka: config.KafkaSettings, topic: str) -> str:
            asked(kafka, topic)
            return ""

        app.topic_id = reader.topic_id = nameless  # type: ignore[attr-defined]  # imported names, replaced for the test
    try:
        settings = config.load(sys.argv[1])
        return app.run(settings, settings.models[0].name, load=hanging if "HANG" in os.environ else load)
    except VedetteError as error:
        print(f"vedette: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
