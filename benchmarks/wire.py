"""Events of a benchmark in the formats that the worker reads, encoded before the clock starts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from aiokafka import AIOKafkaProducer

from benchmarks.traffic import CLASSES, FEATURES, Events
from streams.events.identity import hash_clients

#: Bytes of a single-row JSON event.
JSON_BYTES = 811
#: Bytes of records that one produce request carries, about.
BATCH_BYTES = 512 * 1024
#: A broker that has not acknowledged for so long has failed.
SEND_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Encoded:
    """One Kafka record, with the number of rows in it."""

    key: bytes
    value: bytes
    rows: int
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def client_id(number: int) -> bytes:
    """A client's name."""
    return b"client-%06d" % number


def native(events: Events, model: str) -> Iterator[Encoded]:
    """One row a record, native JSON of exactly `JSON_BYTES` bytes (values with five decimals, padded in the id)."""
    inputs = "[" + ",".join(["%.5f"] * FEATURES) + "]"
    outputs = "[" + ",".join(["%.5f"] * CLASSES) + "]"
    head = f'","time":"2026-01-05T10:00:00Z","model":"{model}","version":"1","client":"%s","inputs":{inputs},'
    text = head + f'"outputs":{outputs}}}'
    columns = zip(events.inputs.tolist(), events.outputs.tolist(), events.clients.tolist(), strict=True)
    for number, (row, scores, client) in enumerate(columns):
        name = client_id(client)
        tail = text % (name.decode(), *row, *scores)
        start = f'{{"id":"{number}-'
        padding = JSON_BYTES - len(start) - len(tail)
        if padding < 0:
            raise ValueError(f"an event is {-padding} bytes longer than {JSON_BYTES}")
        yield Encoded(name, (start + "0" * padding + tail).encode(), 1)


def oip_binary(events: Events, model: str, rows: int) -> Iterator[Encoded]:
    """`rows` rows of one client a record, Open Inference Protocol with raw tensors (FP32)."""
    for start in range(0, len(events), rows):
        inputs, outputs = events.inputs[start : start + rows], events.outputs[start : start + rows]
        raw, answer = inputs.astype("<f4").tobytes(), outputs.astype("<f4").tobytes()
        question = {"name": "input", "shape": list(inputs.shape), "datatype": "FP32"}
        reply = {"name": "output", "shape": list(outputs.shape), "datatype": "FP32"}
        request = {"id": f"{start}", "inputs": [{**question, "parameters": {"binary_data_size": len(raw)}}]}
        response = {"model_name": model, "outputs": [{**reply, "parameters": {"binary_data_size": len(answer)}}]}
        body = json.dumps({"model_name": model, "request": request, "response": response}).encode()
        headers = [("Inference-Header-Content-Length", str(len(body)).encode())]
        yield Encoded(client_id(int(events.clients[start])), body + raw + answer, len(inputs), headers)


_COMPACT = pa.schema(
    [
        ("source_partition", pa.int32()),
        ("source_offset", pa.int64()),
        ("source_row", pa.int32()),
        ("time", pa.timestamp("us", "UTC")),
        ("client", pa.uint64()),
        ("inputs", pa.list_(pa.float32(), FEATURES)),
        ("outputs", pa.list_(pa.float32(), CLASSES)),
    ]
)


def compact(events: Events, model: str, rows: int, client_key: bytes, first_offset: int = 0) -> Iterator[Encoded]:
    """`rows` rows of many clients a record, Vedette's compact record; source offsets count from `first_offset`."""
    schema = _COMPACT.with_metadata({"vedette.version": "1", "model": model, "model_version": "1"})
    numbers = np.unique(events.clients)
    hashes = hash_clients([client_id(int(number)) for number in numbers], client_key)
    clients = hashes[np.searchsorted(numbers, events.clients)]
    for start in range(0, len(events), rows):
        stop = min(start + rows, len(events))
        n = stop - start
        columns = [
            pa.array(np.zeros(n, dtype=np.int32)),
            pa.array(np.arange(first_offset + start, first_offset + stop)),
            pa.array(np.zeros(n, dtype=np.int32)),
            pa.array(np.zeros(n, dtype=np.int64)).cast(pa.timestamp("us", "UTC")),
            pa.array(clients[start:stop]),
            pa.FixedSizeListArray.from_arrays(pa.array(events.inputs[start:stop].ravel()), FEATURES),
            pa.FixedSizeListArray.from_arrays(pa.array(events.outputs[start:stop].ravel()), CLASSES),
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pa.record_batch(columns, schema=schema))
        yield Encoded(b"", sink.getvalue().to_pybytes(), n)


def produce(bootstrap: str, topic: str, records: Iterable[Encoded]) -> int:
    """Write records to partition 0 as fast as it goes; returns their number."""
    return asyncio.run(_produce(bootstrap, topic, records))


async def _produce(bootstrap: str, topic: str, records: Iterable[Encoded]) -> int:
    async with producer(bootstrap) as sender:
        waiting: list[asyncio.Future[object]] = []
        batch, size, count = sender.create_batch(), 0, 0
        for record in records:
            while batch.append(key=record.key, value=record.value, timestamp=None, headers=record.headers) is None:
                waiting.append(await sender.send_batch(batch, topic, partition=0))
                batch, size = sender.create_batch(), 0
            size += len(record.value)
            count += 1
            if size >= BATCH_BYTES:
                waiting.append(await sender.send_batch(batch, topic, partition=0))
                batch, size = sender.create_batch(), 0
        if batch.record_count():
            waiting.append(await sender.send_batch(batch, topic, partition=0))
        await asyncio.wait_for(asyncio.gather(*waiting), SEND_SECONDS)
        return count


def producer(bootstrap: str) -> AIOKafkaProducer:
    """A producer of whole batches."""
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        linger_ms=0,
        max_request_size=4 * BATCH_BYTES,
        max_batch_size=2 * BATCH_BYTES,
    )
