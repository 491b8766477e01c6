"""What can go wrong in `streams`, each with the exit code of the command that it stops.

The codes are part of the interface: an operator's supervisor may act on them (docs/operations.md).
"""

from typing import Literal

EndpointFault = Literal["refused", "crash", "timeout", "not-finite", "unusable"]


class VedetteError(Exception):
    """Root of every error that a command turns into one sentence and an exit code."""

    exit_code = 1


class ConfigError(VedetteError):
    """A setting is wrong; the message gives its path and what is allowed."""

    exit_code = 2


class BrokerError(VedetteError):
    """The Kafka broker cannot be reached or refuses us."""

    exit_code = 10


class StoreError(VedetteError):
    """Redis cannot be reached, refuses us, or is set up so that data could be lost."""

    exit_code = 11


class BundleMismatch(VedetteError):
    """The bundle is damaged, or does not fit the model, the schema or the events."""

    exit_code = 12


class MissingTopic(VedetteError):
    """A topic that must exist does not."""

    exit_code = 13


class TopicRecreated(VedetteError):
    """The topic is not the one that the stored watermark belongs to."""

    exit_code = 14


class WatermarkMissing(VedetteError):
    """Kafka knows a committed offset, but Redis holds no watermark."""

    exit_code = 15


class Stalled(VedetteError):
    """There is lag and no progress: the process ends so that its supervisor restarts it."""

    exit_code = 16


class NotKeyedByClient(VedetteError):
    """One client's events lie in several partitions."""

    exit_code = 17


class Fenced(VedetteError):
    """Another worker owns the partition now, or W moved under us: the batch was not applied."""

    exit_code = 18


class UnknownIncident(VedetteError):
    """No incident of that id; it may have expired."""

    exit_code = 20


class Conflict(VedetteError):
    """Somebody else changed the incident first, or its state does not allow the change."""

    exit_code = 21


class EndpointError(VedetteError):
    """The watched model's endpoint does not answer, or not with scores of the rows that it was asked about.

    Attributes
    ----------
    fault : {"refused", "crash", "timeout", "not-finite", "unusable"}
        A status from 400 to 499; a status from 500 on, or no answer at all; too late; scores that are not finite;
        anything else.
    """

    exit_code = 22

    def __init__(self, message: str, fault: EndpointFault = "unusable") -> None:
        super().__init__(message)
        self.fault: EndpointFault = fault


class UnreadableRecord(VedetteError):
    """Kafka's client can't take a record of the topic apart, or lacks the library that it is compressed with."""

    exit_code = 24


class DeliveryError(VedetteError):
    """A test notification did not arrive at one of its destinations."""

    exit_code = 23
