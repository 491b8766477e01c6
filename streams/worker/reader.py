"""Reads the event topic in whole fetches, and hands them to the partitions that the group has given us.

A service inside the Faust app. Faust's agents cost four asyncio tasks a message; `getmany` costs none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import mode
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CorruptRecordException,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)

from streams.config import KafkaSettings
from streams.errors import BrokerError, MissingTopic, TopicRecreated, UnreadableRecord, VedetteError
from streams.events.batch import Record
from streams.store.keys import PartitionKeys
from streams.store.partition import PartitionStore, Scripts
from streams.store.snapshots import Snapshots
from streams.worker.broker import async_options, topic_id
from streams.worker.partition import DRAIN_SECONDS, Crew, Partition
from streams.worker.peers import Peer

log = logging.getLogger("vedette.worker")

Answer = TypeVar("Answer")

#: How long `getmany` waits where every partition has room, and where one has none.
IDLE_MILLISECONDS, BUSY_MILLISECONDS = 200, 10
#: Bytes of one partition that one fetch brings.
FETCH_BYTES = 4 * 1024 * 1024
#: Seconds between two commits; the commit only serves lag displays.
COMMIT_SECONDS = 1.0
#: A commit that takes longer is left out; the next one says the same and more.
COMMIT_LIMIT_SECONDS = 2.0
#: Seconds between two looks at the topic's id.
IDENTITY_SECONDS = 60.0
#: The topic's id is not asked for again so soon: partitions are taken together.
FRESH_SECONDS = 3.0
#: A partition that gives nothing for so long holds no record that its client can't read.
SEARCH_MILLISECONDS = 3_000
#: A search for an unreadable record takes at most so long in each partition.
SEARCH_SECONDS = 20.0
#: A broker that does not answer a small question for so long is away.
ANSWER_SECONDS = 5.0


class EventReader(mode.Service):
    """The consumer of one model's event topic in the worker's group.

    Parameters
    ----------
    kafka : KafkaSettings
    topic : str
    redis : redis.asyncio.Redis
    scripts : Scripts
    broker : Peer
    """

    def __init__(
        self, kafka: KafkaSettings, topic: str, redis: Any, scripts: Scripts, broker: Peer, **service: Any
    ) -> None:
        super().__init__(**service)
        self.kafka = kafka
        self.topic = topic
        self.broker = broker
        self.partitions: dict[int, Partition] = {}
        self._ends: dict[int, int] = {}
        self.joined_at: float | None = None
        """When the group last gave us partitions, none included; None while it has not."""
        self.asked_at = time.monotonic()
        """When we last began to wait for the group."""
        self.crew: Crew
        self._redis = redis
        self._scripts = scripts
        self._hashing = ThreadPoolExecutor(1, "vedette-hash")
        self._consumer: AIOKafkaConsumer | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._committed: dict[int, int] = {}
        self._topic_id: str | None = None
        self._topic_id_at = 0.0
        self._asking = asyncio.Lock()
        self.failed: asyncio.Future[VedetteError] = asyncio.get_running_loop().create_future()
        """Set when something happened that no waiting mends: the process must end."""

    # --- what partitions ask -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """A partition has room again."""
        self._wake.set()

    async def topic_id(self) -> str:
        """The broker's id of the topic, asked until it answers.

        Raises
        ------
        MissingTopic
        """
        async with self._asking:
            while self._topic_id is None or time.monotonic() - self._topic_id_at > FRESH_SECONDS:
                try:
                    self._topic_id = await asyncio.to_thread(topic_id, self.kafka, self.topic)
                    self._topic_id_at = time.monotonic()
                except BrokerError as error:
                    self.broker.failed(error)
                    await self.broker.pause()
            return self._topic_id

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset."""
        return await self._asked(lambda consumer: consumer.committed(TopicPartition(self.topic, partition)))

    async def bounds(self, partition: int) -> tuple[int, int]:
        """First offset that is there, and the next one."""
        place = TopicPartition(self.topic, partition)
        first = await self._asked(lambda consumer: consumer.beginning_offsets([place]))
        end = await self._asked(lambda consumer: consumer.end_offsets([place]))
        return int(first[place]), int(end[place])

    async def fetch_one(self, partition: int, offset: int) -> Record | None:
        """The record at an offset, or None when it is gone."""
        place = TopicPartition(self.topic, partition)
        consumer = AIOKafkaConsumer(**async_options(self.kafka), group_id=None, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([place])
            consumer.seek(place, offset)
            found = await consumer.getmany(place, timeout_ms=round(ANSWER_SECONDS * 1000), max_records=1)
        finally:
            await consumer.stop()
        for record in found.get(place, ()):
            if record.offset == offset:
                return record
        return None

    def start_at(self, partition: int, offset: int) -> None:
        """Deliver records of a partition from an offset on."""
        place = TopicPartition(self.topic, partition)
        if self._consumer is None:
            return
        try:
            self._consumer.seek(place, offset)
            self._consumer.resume(place)
        except IllegalStateError:
            log.info("%s/%d was taken away while it was being loaded", self.topic, partition)

    async def still_ours(self, partition: int, offset: int) -> bool:
        """Whether the group still takes commits from us."""
        consumer = self._consumer
        place = TopicPartition(self.topic, partition)
        if consumer is None or place not in consumer.assignment():
            return False
        if offset < 0:
            return True
        try:
            await bounded(consumer.commit({place: offset}), ANSWER_SECONDS)
        except (KafkaError, TimeoutError, ValueError) as error:
            log.info("%s/%d may not be ours any more: %s", self.topic, partition, error)
            return False
        return True

    async def _asked(self, question: Any) -> Any:
        while True:
            try:
                if self._consumer is None:
                    raise BrokerError("the consumer is being made anew")  # noqa: TRY301  (it is waited for below)
                with self.broker.call():
                    answer = await bounded(question(self._consumer), ANSWER_SECONDS)
            except (KafkaError, BrokerError, TimeoutError, OSError) as error:
                self.broker.failed(error)
                await self.broker.pause()
            else:
                self.broker.answered()
                return answer

    # --- life --------------------------------------------------------------------------------------------------------

    async def on_stop(self) -> None:
        """Finish what is scored, commit, leave the group."""
        await self._release(list(self.partitions))
        await self._close()
        self._hashing.shutdown(wait=False, cancel_futures=True)

    @mode.Service.task
    async def _run(self) -> None:
        while not self.should_stop:
            try:
                await self._open()
                await self._fetch()
            except (KafkaError, OSError) as error:
                if self.should_stop:
                    return
                self.broker.failed(error)
                await self._release(list(self.partitions))
                await self._close()
                await self.broker.pause()
            except VedetteError as error:
                self._fail(error)
                return

    async def _open(self) -> None:
        self.asked_at, self.joined_at = time.monotonic(), None
        self._consumer = consumer = AIOKafkaConsumer(
            **async_options(self.kafka),
            client_id="vedette-worker",
            group_id=self.kafka.group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            isolation_level="read_uncommitted",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_bytes=8 * FETCH_BYTES,
            fetch_max_wait_ms=500,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=2_000,
            rebalance_timeout_ms=60_000,
            max_poll_interval_ms=600_000,
            request_timeout_ms=30_000,
            retry_backoff_ms=200,
            metadata_max_age_ms=30_000,
        )
        await consumer.start()
        self.broker.answered()
        consumer.subscribe([self.topic], listener=_Listener(self))

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        try:
            await bounded(consumer.stop(), ANSWER_SECONDS)
        except (KafkaError, TimeoutError, OSError) as error:
            log.warning("the consumer did not close well: %s", error or type(error).__name__)

    async def _fetch(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        nobody = TopicPartition(self.topic, -1)
        while not self.should_stop:
            self._raise_failures()
            self._wake.clear()
            open_ = [partition for partition in self.partitions.values() if partition.wants_records]
            idle = len(open_) == len(self.partitions) > 0
            places = [TopicPartition(self.topic, partition.number) for partition in open_] or [nobody]
            if not open_ and self.partitions:
                await self._woken()
                await consumer.getmany(nobody, timeout_ms=0)  # we are alive, the group may know
                continue
            try:
                fetched = await consumer.getmany(
                    *places,
                    timeout_ms=IDLE_MILLISECONDS if idle or not self.partitions else BUSY_MILLISECONDS,
                    max_records=self.crew.options.max_rows,
                )
            except NoOffsetForPartitionError:
                continue  # not loaded yet: the partition says where it begins
            except OffsetOutOfRangeError as error:
                await self._out_of_range(error)
                continue
            except UnsupportedCodecError as error:
                raise UnreadableRecord(
                    f"records of {self.topic} are compressed with a codec whose library is not installed ({error}): "
                    "pip install cramjam"
                ) from None
            except (UnicodeDecodeError, CorruptRecordException) as error:
                raise await self._unreadable(consumer, open_, error) from None
            for place, records in fetched.items():
                partition = self.partitions.get(place.partition)
                if partition is not None and partition.ready:
                    partition.deliver(records)
            await self._pass_gaps(consumer, open_, fetched)

    async def _woken(self) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), IDLE_MILLISECONDS / 1000)
        except TimeoutError:
            return

    async def _pass_gaps(self, consumer: AIOKafkaConsumer, open_: list[Partition], fetched: dict[Any, Any]) -> None:
        for partition in open_:
            place = TopicPartition(self.topic, partition.number)
            if place not in fetched and partition.ready and place in consumer.assignment():
                try:
                    partition.reached(await consumer.position(place))
                except IllegalStateError:
                    continue

    async def _out_of_range(self, error: OffsetOutOfRangeError) -> None:
        wanted: dict[TopicPartition, int] = error.args[0]
        for place, offset in wanted.items():
            partition = self.partitions.get(place.partition)
            if partition is None:
                continue
            first, end = await self.bounds(place.partition)
            if offset > end:
                raise TopicRecreated(
                    f"{self.topic}/{place.partition} ends at offset {end}, and everything before {offset} was read "
                    "already: the topic was created anew"
                )
            if partition.ready:  # else it says where it begins when it is loaded
                partition.lost(first)
                self.start_at(place.partition, max(first, partition.delivered_to))

    async def _unreadable(
        self, consumer: AIOKafkaConsumer, open_: list[Partition], error: Exception
    ) -> UnreadableRecord | KafkaError:
        """Where the record stands that the client cannot take apart; what lies before it is scored and recorded.

        The client has lost what it fetched beside it, so every partition is read again from what was delivered, one
        record after the other. When no such record is met again, it was damaged on its way: the consumer is made anew.
        """
        for partition in open_:
            place = TopicPartition(self.topic, partition.number)
            if not partition.ready or place not in consumer.assignment():
                continue
            offset = partition.delivered_to
            consumer.seek(place, offset)
            until = time.monotonic() + SEARCH_SECONDS
            try:
                while time.monotonic() < until and partition.ready:
                    found = await consumer.getmany(place, timeout_ms=SEARCH_MILLISECONDS, max_records=1)
                    if not found or not partition.ready:
                        break
                    partition.deliver(found[place])
                    offset = partition.delivered_to
            except (UnicodeDecodeError, CorruptRecordException) as again:
                what = f"the first record of {partition.where} from offset {offset} on cannot be read ({again})"
                if await self._recorded(partition, offset):
                    behind = await self._readable_behind(consumer, place, offset)
                    return UnreadableRecord(
                        f"{what}, nor what was sent in one batch with it; all before it are recorded: to go on, delete "
                        f"the partition's records before offset {behind} with kafka-delete-records, and start; "
                        "what is passed over is counted as expired"
                    )
                return UnreadableRecord(f"{what}; those before it are not all recorded yet: start again")
        return KafkaError(f"a record of {self.topic} was damaged on its way: {error}")

    async def _readable_behind(self, consumer: AIOKafkaConsumer, place: TopicPartition, offset: int) -> int:
        """The first offset behind an unreadable record from which on the client can read, as far as time allows.

        The client reads a batch from its beginning, wherever it shall begin.
        """
        _, end = await self.bounds(place.partition)
        until = time.monotonic() + SEARCH_SECONDS
        offset += 1
        while offset < end and time.monotonic() < until:
            consumer.seek(place, offset)
            try:
                await consumer.getmany(place, timeout_ms=SEARCH_MILLISECONDS, max_records=1)
            except (UnicodeDecodeError, CorruptRecordException):
                offset += 1
            else:
                break
        return offset

    async def _recorded(self, partition: Partition, offset: int) -> bool:
        """Wait until everything before the offset is recorded; False when it takes too long."""
        until = time.monotonic() + SEARCH_SECONDS
        while partition.recorded < offset and partition.ready and time.monotonic() < until:
            self._raise_failures()
            self._wake.clear()
            await self._woken()
        return partition.recorded >= offset

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, VedetteError):
            error = VedetteError(f"a partition ended with {type(error).__name__}: {error}")
        if not self.failed.done():
            self.failed.set_result(error)

    def _raise_failures(self) -> None:
        for task in self._tasks.values():
            if task.done() and not task.cancelled():
                error = task.exception()
                if error is not None:
                    raise error

    # --- the group ---------------------------------------------------------------------------------------------------

    async def revoked(self, places: Iterable[TopicPartition]) -> None:
        """The group takes partitions away; they may come back."""
        self.asked_at, self.joined_at = time.monotonic(), None
        numbers = [place.partition for place in places]
        if numbers:
            self.crew.points("during-rebalance")
        await self._release(numbers)

    async def assigned(self, places: Iterable[TopicPartition]) -> None:
        """The group gives us partitions: all that we have now."""
        ours = {place.partition: place for place in places}
        consumer = self._consumer
        if consumer is None:
            return
        self.joined_at = time.monotonic()
        for number in set(self.partitions) - set(ours):
            del self.partitions[number]
            self._ends.pop(number, None)
        for number, place in ours.items():
            consumer.pause(place)
            if number not in self.partitions:
                keys = PartitionKeys(self.topic, number)
                sent = self._sent
                store = PartitionStore(self._redis, keys, self._scripts, sent)
                self.partitions[number] = Partition(number, store, Snapshots(store, self._hashing), self.crew)
            running = self._tasks.get(number)
            if running is None or running.done():
                self._tasks[number] = asyncio.create_task(self.partitions[number].run(), name=f"partition-{number}")
        log.info("the group gave us partitions %s of %s", sorted(ours), self.topic)

    def _sent(self) -> None:
        self.crew.points("record-sent")

    async def _release(self, numbers: list[int]) -> None:
        """Let partitions finish what is scored within a short time, then stop them."""
        leaving = {number: self._tasks.pop(number) for number in numbers if number in self._tasks}
        for number, task in leaving.items():
            partition = self.partitions[number]
            if partition.ready:
                partition.stop()
            else:
                task.cancel()
        if leaving:
            await asyncio.wait(leaving.values(), timeout=DRAIN_SECONDS)
        for task in leaving.values():
            task.cancel()
        for error in await asyncio.gather(*leaving.values(), return_exceptions=True):
            if isinstance(error, Exception):
                log.error("a partition ended with %s: %s", type(error).__name__, error)
                self._fail(error)
        await self._commit()

    async def _commit(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        held = consumer.assignment()
        offsets = {
            TopicPartition(self.topic, number): partition.recorded
            for number, partition in self.partitions.items()
            if partition.recorded >= 0
            and self._committed.get(number) != partition.recorded
            and TopicPartition(self.topic, number) in held
        }
        if not offsets:
            return
        try:
            await bounded(consumer.commit(offsets), COMMIT_LIMIT_SECONDS)
        except (KafkaError, TimeoutError, ValueError) as error:
            log.debug("commit left out: %s", error)
        else:
            self._committed.update({place.partition: offset for place, offset in offsets.items()})

    # --- looking around ----------------------------------------------------------------------------------------------

    @property
    def lag(self) -> dict[int, int]:
        """Records of each partition up to its end, as last seen, that are not recorded by now; from any thread."""
        partitions = dict(self.partitions)
        return {
            number: max(0, end - partitions[number].recorded)
            for number, end in dict(self._ends).items()
            if number in partitions and partitions[number].recorded >= 0
        }

    @mode.Service.timer(COMMIT_SECONDS)
    async def _look(self) -> None:
        await self._commit()
        consumer = self._consumer
        if consumer is None:
            return
        places = [TopicPartition(self.topic, number) for number in self.partitions]
        if not places:
            self._ends = {}
            return
        try:
            with self.broker.call():
                ends = await bounded(consumer.end_offsets(places), ANSWER_SECONDS)
        except (KafkaError, TimeoutError, OSError) as error:
            self.broker.failed(error)
            return
        self.broker.answered()
        self._ends = {place.partition: end for place, end in ends.items()}

    @mode.Service.timer(IDENTITY_SECONDS)
    async def _identify(self) -> None:
        known = self._topic_id
        try:
            found = await asyncio.to_thread(topic_id, self.kafka, self.topic)
        except BrokerError as error:
            self.broker.failed(error)
            return
        except MissingTopic as error:
            self._fail(error)
            return
        if known and found and known != found:
            self._fail(TopicRecreated(f"the topic {self.topic} was created anew: its id was {known} and is {found}"))


async def bounded(call: Coroutine[Any, Any, Answer], seconds: float) -> Answer:
    """Wait for a call at most so long, even if it does not let itself be cancelled.

    Raises
    ------
    TimeoutError
    """
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise TimeoutError(f"no answer within {seconds:g} s")
    return task.result()


class _Listener(ConsumerRebalanceListener):
    def __init__(self, reader: EventReader) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._reader.revoked(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._reader.assigned(assigned)
