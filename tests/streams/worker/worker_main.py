"""A real worker with the counting scorer: ``python -m tests.streams.worker.worker_main CONFIG``."""

from __future__ import annotations

import sys

from streams import config
from streams.errors import VedetteError
from streams.worker.app import run
from tests.streams.worker.counting import load


def main() -> int:
    settings = config.load(sys.argv[1])
    try:
        return run(settings, settings.models[0].name, load=load)
    except VedetteError as error:
        print(f"vedette: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
