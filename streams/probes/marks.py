"""Marks that tell probes from traffic. Pure: no I/O, no clock.

Two kinds, both under a key that only the prober and the workers hold:

* the **header mark**, on records that the prober produces itself: Kafka header ``vedette-probe`` with the value
  ``v1.<id>.<issued>.<hex HMAC-SHA256>``;
* the **front-door id**, on requests that the prober sends to the model's endpoint, so that the logged copy can be
  recognised: request id ``vp1.<nonce>.<tag>`` in unpadded base64url, nonce = campaign (8 bytes), counter (4), partition
  (4), issue time (8), big endian.

Both bind the mark to the topic and to the client; the header mark also to the partition and to the record's bytes, the
front-door id to the inputs (its record is written by somebody else, in a form that the prober does not choose). Which
partition somebody else will write to is not the prober's choice either: the id names the one in which the client's
records were seen to arrive, and in any other it is a copy. Every
field stands in the HMAC behind its length, and each kind has a label of its own, so no mark can be read as another. A
mark has exactly one spelling: verification spells the expected one and compares in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.config import KEY_BYTES
from streams.events.batch import ProbeCandidate

#: Name of the Kafka header.
HEADER = "vedette-probe"
#: First characters of a front-door request id.
REQUEST_PREFIX = "vp1."

#: Larger records are not probes; a forged mark on a huge record must not cost a digest of it.
MAX_PAYLOAD_BYTES = 1 << 20
#: A front-door request with more rows is not a probe.
MAX_REQUEST_ROWS = 1024

CAMPAIGN_BYTES = 8
_COUNTER_BYTES = 4
_PARTITION_BYTES = 4
_TIME_BYTES = 8
#: Counter of the aside that asks where a client's records arrive.
HELLO = (1 << (8 * _COUNTER_BYTES)) - 1
#: Issue time of asides: questions whose logged copies have expired from the start, so that they are scored nowhere.
ASIDE_ISSUED = 0
#: Stands in a front-door id that names no partition.
ANYWHERE = (1 << (8 * _PARTITION_BYTES)) - 1

_HEADER_FORM = re.compile(rb"v1\.([0-9a-f]{16})-([0-9a-f]{8})\.(0|[1-9][0-9]{0,17})\.[0-9a-f]{64}")
_REQUEST_FORM = re.compile(r"vp1\.([A-Za-z0-9_-]{32})\.[A-Za-z0-9_-]{43}", re.ASCII)
_UNPACK = struct.Struct(f"{CAMPAIGN_BYTES}s{_COUNTER_BYTES}s{_PARTITION_BYTES}s{_TIME_BYTES}s").unpack
_LONGEST_HEADER = 3 + 25 + 1 + 18 + 1 + 64
_REQUEST_LENGTH = 4 + 32 + 1 + 43


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark whose tag is right.

    Attributes
    ----------
    id : str
        Of this probe record: campaign, a hyphen, and the counter in hex.
    campaign : str
        16 hex digits.
    issued : int
        Microseconds since the epoch, by the prober's clock.
    expired : bool
        Broker time and issue time are further apart than a mark may live.
    elsewhere : bool
        It names another partition than the one it was read in: a copy.
    """

    id: str
    campaign: str
    issued: int
    expired: bool
    elsewhere: bool = False


def probe_id(campaign: bytes, counter: int) -> str:
    """Id of one record of a campaign.

    Raises
    ------
    ValueError
        When the campaign is not 8 bytes or the counter does not fit 4.
    """
    if len(campaign) != CAMPAIGN_BYTES:
        raise ValueError(f"a campaign id has {CAMPAIGN_BYTES} bytes, not {len(campaign)}")
    if not 0 <= counter < 1 << (8 * _COUNTER_BYTES):
        raise ValueError(f"counter {counter} does not fit {_COUNTER_BYTES} bytes; start a new campaign")
    return f"{campaign.hex()}-{counter:08x}"


def sign_header(
    key: bytes,
    topic: str,
    partition: int,
    campaign: bytes,
    counter: int,
    issued_us: int,
    client: bytes | None,
    payload: bytes,
) -> bytes:
    """Value of the ``vedette-probe`` header of one record.

    Parameters
    ----------
    key : bytes
        The probe key, 32 bytes.
    topic, partition
        Where the record will stand.
    campaign, counter
        See `probe_id`.
    issued_us : int
        Now, microseconds since the epoch.
    client : bytes or None
        The client's identity as it stands in the record, before hashing.
    payload : bytes
        The record's value, at most `MAX_PAYLOAD_BYTES`.
    """
    _check_key(key)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a probe record has at most {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}; send fewer rows")
    if not 0 <= issued_us < 10**18:
        raise ValueError(f"issue time {issued_us} is not in microseconds since the epoch")
    return _spell_header(key, topic, partition, probe_id(campaign, counter), issued_us, client, payload)


def sign_request(
    key: bytes,
    topic: str,
    campaign: bytes,
    counter: int,
    issued_us: int,
    client: bytes | None,
    inputs: NDArray[Any],
    partition: int = ANYWHERE,
) -> str:
    """Front-door id of one request to the model's endpoint.

    Parameters
    ----------
    key, topic, campaign, counter, issued_us, client
        As in `sign_header`; `topic` is the one that the endpoint's events go to.
    inputs : float (n, d)
        The rows of the request, as they are sent; compared in single precision.
    partition : int
        Where the client's records arrive; `ANYWHERE` while that is not known.
    """
    _check_key(key)
    if not 0 < len(inputs) <= MAX_REQUEST_ROWS:
        raise ValueError(f"a front-door request has 1 to {MAX_REQUEST_ROWS} rows, not {len(inputs)}")
    probe_id(campaign, counter)
    if not 0 <= issued_us < 10**18:
        raise ValueError(f"issue time {issued_us} is not in microseconds since the epoch")
    if not 0 <= partition <= ANYWHERE:
        raise ValueError(f"partition {partition} does not fit {_PARTITION_BYTES} bytes")
    numbers = ((counter, _COUNTER_BYTES), (partition, _PARTITION_BYTES), (issued_us, _TIME_BYTES))
    nonce = campaign + b"".join(number.to_bytes(size, "big") for number, size in numbers)
    return _spell_request(key, topic, nonce, client, inputs)


def verify(
    candidate: ProbeCandidate,
    topic: str,
    partition: int,
    broker_time_us: int,
    ttl_us: int,
    key: bytes,
    inputs: NDArray[np.float64] | None,
) -> Mark | None:
    """The candidate's mark, or None when it is no probe of ours.

    What cannot be a mark is refused by its length and form before anything is hashed.

    Parameters
    ----------
    candidate : ProbeCandidate
        Header or request id, client and payload of one record.
    topic, partition
        Where the record was read.
    broker_time_us : int
        The record's time, microseconds; expiry is judged by it and never by the reader's clock.
    ttl_us : int
        How far broker time and issue time may be apart, microseconds.
    key : bytes
        The probe key.
    inputs : float64 (n, d) or None
        All rows of the record, in order; None when they could not be read (a front-door id is not verified then).
    """
    if candidate.header is not None:
        mark = _verify_header(candidate, candidate.header, topic, partition, broker_time_us, ttl_us, key)
        if mark is not None:
            return mark
    if candidate.request_id is not None and inputs is not None:
        return _verify_request(candidate, candidate.request_id, topic, partition, broker_time_us, ttl_us, key, inputs)
    return None


def _verify_header(
    candidate: ProbeCandidate, header: bytes, topic: str, partition: int, time_us: int, ttl_us: int, key: bytes
) -> Mark | None:
    if len(header) > _LONGEST_HEADER or len(candidate.payload) > MAX_PAYLOAD_BYTES:
        return None
    form = _HEADER_FORM.fullmatch(header)
    if form is None:
        return None
    campaign = form[1].decode("ascii")
    identity = f"{campaign}-{form[2].decode('ascii')}"
    issued = int(form[3])
    expected = _spell_header(key, topic, partition, identity, issued, candidate.client, candidate.payload)
    if not hmac.compare_digest(expected, header):
        return None
    return Mark(identity, campaign, issued, abs(time_us - issued) > ttl_us)


def _verify_request(
    candidate: ProbeCandidate,
    request: str,
    topic: str,
    partition: int,
    time_us: int,
    ttl_us: int,
    key: bytes,
    inputs: NDArray[np.float64],
) -> Mark | None:
    if len(request) != _REQUEST_LENGTH or not 0 < len(inputs) <= MAX_REQUEST_ROWS:
        return None
    form = _REQUEST_FORM.fullmatch(request)
    if form is None:
        return None
    nonce = base64.urlsafe_b64decode(form[1])
    expected = _spell_request(key, topic, nonce, candidate.client, inputs)
    if not hmac.compare_digest(expected.encode("ascii"), request.encode("ascii")):
        return None
    campaign, counter, home, when = _UNPACK(nonce)
    issued, place = int.from_bytes(when, "big"), int.from_bytes(home, "big")
    expired, elsewhere = abs(time_us - issued) > ttl_us, place not in (ANYWHERE, partition)
    return Mark(f"{campaign.hex()}-{counter.hex()}", campaign.hex(), issued, expired, elsewhere)


def _spell_header(
    key: bytes, topic: str, partition: int, identity: str, issued: int, client: bytes | None, payload: bytes
) -> bytes:
    fields = (topic.encode(), b"%d" % partition, identity.encode("ascii"), b"%d" % issued, *_client(client), payload)
    return f"v1.{identity}.{issued}.{_tag(key, b'vedette-header-v1', fields).hex()}".encode("ascii")


def _spell_request(key: bytes, topic: str, nonce: bytes, client: bytes | None, inputs: NDArray[Any]) -> str:
    tag = _tag(key, b"vedette-request-v1", (topic.encode(), nonce, *_client(client), _digest(inputs)))
    return f"{REQUEST_PREFIX}{_base64(nonce)}.{_base64(tag)}"


def _client(client: bytes | None) -> tuple[bytes, bytes]:
    return (b"anonymous", b"") if client is None else (b"client", client)


def _digest(inputs: NDArray[Any]) -> bytes:
    """SHA-256 of shape and rows, as single-precision little-endian row-major bytes; -0 counts as 0."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(inputs, dtype="<f4") + np.float32(0)
    shape = b",".join(b"%d" % side for side in rows.shape)
    return hashlib.sha256(b"%d:%s" % (len(shape), shape) + rows.astype("<f4", copy=False).tobytes()).digest()


def _tag(key: bytes, label: bytes, fields: tuple[bytes, ...]) -> bytes:
    message = b"".join(len(field).to_bytes(8, "big") + field for field in (label, *fields))
    return hmac.digest(key, message, "sha256")


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES["probe"]:
        raise ValueError(f"the probe key has {KEY_BYTES['probe']} bytes, not {len(key)}")
