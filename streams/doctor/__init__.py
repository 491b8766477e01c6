"""`vedette doctor`: examines broker, topic, Redis, bundle, clocks and settings, and says what to mend."""

from streams.doctor.command import examine, run

__all__ = ["examine", "run"]
