"""Workers of a batch on Ray Data: an actor pool on this machine or on a cluster."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import AlignVLMError, ConfigError
from .requests import Unit
from .worker import Job


@dataclass(frozen=True)
class Pool:
    """How the work is spread.

    Attributes:
        address: of a Ray cluster (``auto``, ``host:port``); ``None``: this machine alone.
        actors: models loaded at once; default: one a GPU, or one a machine without GPUs.
        num_gpus: of each actor; may be a fraction; default: 1 if there are GPUs.
        batch_size: units answered together.
    """

    address: str | None = None
    actors: int | None = None
    num_gpus: float | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.actors is not None and self.actors < 1):
            raise ConfigError("--actors and --batch-size must be at least 1")
        if self.num_gpus is not None and not 0 <= self.num_gpus < math.inf:
            raise ConfigError(f"--num-gpus must be 0 or more, not {self.num_gpus}")


def answered(units: Sequence[Unit], job: Job, pool: Pool) -> Iterator[int]:
    """Have the units answered; yields how many rows were written, batch after batch.

    Workers that die are started again, and their batches with them, so a row may be written twice
    but none is lost. Only the loss of the driver's own machine ends the run.

    Raises:
        ConfigError: Ray is not installed, no such cluster, or it has too few GPUs.
        AlignVLMError: the workers cannot do their work at all.
    """
    with _session(pool.address) as ray:
        actors, resources = _share(ray, pool, len(units))
        context = ray.data.DataContext.get_current()
        bars, context.enable_progress_bars = context.enable_progress_bars, False
        spread = _through_client if _is_client(ray) else _by_data
        try:
            yield from spread(ray, units, job, pool, actors, resources)
        except ray.exceptions.RayError as error:
            raise AlignVLMError(
                f"the workers stopped: {_cause(error)}; finished rows are kept, run the same "
                "command again to go on"
            ) from None
        finally:
            context.enable_progress_bars = bars


def _is_client(ray: Any) -> bool:
    """Whether this process talks to the cluster through ``ray://``."""
    return ray.util.client.ray.is_connected()


def _by_data(
    ray: Any, units: Sequence[Unit], job: Job, pool: Pool, actors: int, resources: dict[str, Any]
) -> Iterator[int]:
    # a block a batch: then a lost worker costs at most the batches it was at
    blocks = -(-len(units) // pool.batch_size)
    data = ray.data.from_items(
        [{"unit": unit.to_json()} for unit in units], override_num_blocks=blocks
    ).map_batches(
        job.worker,
        fn_constructor_args=(job,),
        batch_size=pool.batch_size,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        **resources,
    )
    for row in data.iter_rows():
        yield int(row["rows"])


def _through_client(
    ray: Any, units: Sequence[Unit], job: Job, pool: Pool, actors: int, resources: dict[str, Any]
) -> Iterator[int]:
    """Ray Data does not run in a client (``ray://``): actors get a batch whenever one is free."""
    made = ray.remote(job.worker).options(max_restarts=-1, max_task_retries=-1, **resources)
    workers = ray.util.ActorPool([made.remote(job) for _ in range(actors)])
    texts, size = [unit.to_json() for unit in units], pool.batch_size
    batches = [{"unit": texts[start : start + size]} for start in range(0, len(texts), size)]
    for done in workers.map_unordered(lambda actor, batch: actor.work.remote(batch), batches):
        yield sum(done["rows"])


def _cause(error: Any) -> str:
    """The innermost exception's last line: Ray wraps a worker's traceback in text."""
    cause = getattr(error, "cause", None)
    lines = str(cause or error).strip().splitlines()
    return re.sub(r"^alignvlm\.errors\.\w+: ", "", lines[-1].strip()) if lines else repr(error)


@contextmanager
def _session(address: str | None) -> Iterator[Any]:
    """Ray, started if the caller has not done so; usage statistics and dashboard stay off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ parts print notes about restarts, which are expected here
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # what becomes of CUDA_VISIBLE_DEVICES where an actor has no GPU; unset, Ray warns
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
        import ray.util
        import ray.util.client
    except ImportError:
        raise ConfigError("Ray is not installed: pip install 'alignvlm[batch]'") from None
    ours = not ray.is_initialized()
    if ours:
        keys: dict[str, Any] = {} if address else {"include_dashboard": False}
        if address:
            _check_reachable(address)
        try:
            with _no_stderr(), _same_sigterm():
                ray.init(
                    address=address or "local",
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **keys,
                )
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            line = (str(error).strip().splitlines() or [repr(error)])[0]
            if address:
                raise ConfigError(_NO_CLUSTER.format(address, line)) from None
            raise ConfigError(f"Ray does not start on this machine: {line}") from None
    with _unprinted(ray):  # its end too: until then Ray's threads print what became of workers
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Within, nothing reaches standard error: Ray's C++ parts write there past Python, of a level
    of logging that was set."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own, with which the program would end without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _unprinted(ray: Any) -> Iterator[None]:
    """Within, Ray prints nothing: it would show the tracebacks of workers, on standard output too.
    Its own folder has them all the same, and what ends the work is one line of ours."""
    worker = ray._private.worker
    before, worker.print_to_stdstream = worker.print_to_stdstream, lambda *_, **__: None
    handlers = [
        handler
        for name in ("ray", "ray.data")
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler)  # those of files are none
    ]
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        worker.print_to_stdstream = before
        for handler, level in zip(handlers, levels):
            handler.setLevel(level)


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return  # auto, or a client's address
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(_NO_CLUSTER.format(address, error.strerror or error)) from None


_NO_CLUSTER = "no Ray cluster at {!r}: {}; start one with ray start --head"


def _share(ray: Any, pool: Pool, units: int) -> tuple[int, dict[str, Any]]:
    """Number of actors, and the GPUs and CPUs of each.

    Raises:
        ConfigError: no machine can take an actor.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1]  # an actor takes a CPU at least
    if not nodes:
        raise ConfigError("no machine of the Ray cluster offers a CPU to workers")
    most = max(node.get("GPU", 0) for node in nodes)
    num_gpus = pool.num_gpus
    if num_gpus is None:
        num_gpus = 1 if most >= 1 else 0
    if num_gpus > most:
        raise ConfigError(
            f"an actor wants {num_gpus:g} GPUs, but no machine has more than {most:g}; "
            "see --num-gpus"
        )
    # how many actors each machine has room for; without GPUs one, or all that are asked for
    rooms = [
        int(node.get("GPU", 0) // num_gpus) if num_gpus else pool.actors or 1 for node in nodes
    ]
    actors = min(pool.actors or sum(rooms), -(-units // pool.batch_size))
    placed = min(actors, sum(rooms))
    a_node = next(n for n in range(1, placed + 1) if sum(min(n, room) for room in rooms) >= placed)
    cpus = min(int(node["CPU"]) // min(a_node, room) for node, room in zip(nodes, rooms) if room)
    return actors, {"num_gpus": num_gpus, "num_cpus": max(1, cpus)}
