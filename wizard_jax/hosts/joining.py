"""How the processes of a run find one another, and how they end together.

On TPU pods JAX finds out by itself. Elsewhere the environment says it, as `wizard launch local --processes` does:

    JAX_COORDINATOR_ADDRESS=127.0.0.1:4321  JAX_NUM_PROCESSES=2  JAX_PROCESS_ID=0

A process that fails tells the others why before it leaves, and they end with its exit code. One that is killed tells
nothing: the others find out when it gives no sign of life (for WIZARD_HEARTBEAT_SECONDS, 15 by default) and end with
42; when it is killed, or stays away, before all have met, they do so after five minutes. When it is process 0, whose
coordination service goes with it, JAX ends the others at once, by SIGABRT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import socket
from collections.abc import Iterator, Mapping

import jax

from configs.errors import UserError
from configs.interrupt import Interrupted
from wizard_jax.hosts.group import ALONE, Hosts, HostsError
from wizard_jax.hosts.watching import PeerWatch, ending_unless_met

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = "WIZARD_HEARTBEAT_SECONDS"
_HEARTBEAT_SECONDS = 15
_JOIN_SECONDS = 300
_SHUTDOWN_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Place:
    """Of a process among those of its run."""

    address: str
    count: int
    index: int


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment gives; None if it gives none. Raises HostsError for half a place."""
    given = {name: environment[name] for name in (ADDRESS, COUNT, INDEX) if environment.get(name)}
    if not given:
        return None
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
    if missing:
        raise HostsError(f"{', '.join(given)} is set and {', '.join(missing)} is not: set all three, or none")
    count, index = given[COUNT], given[INDEX]
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise HostsError(f"{COUNT} is {count} and {INDEX} {index}: give a number, and one from 0 to below it")
    return Place(given[ADDRESS], int(count), int(index))


@contextlib.contextmanager
def joined() -> Iterator[Hosts]:
    """The processes of this run, met; they leave together. A process that is alone initialises nothing.

    Must be entered before anything asks JAX for devices.
    """
    place = place_in(os.environ) or _place_on_pod()
    if place is None or place.count == 1:
        yield ALONE
        return
    heartbeat = _heartbeat(os.environ)
    hosts = _meet(place, heartbeat=heartbeat)
    with PeerWatch(hosts, heartbeat=heartbeat) as watch:
        try:
            yield hosts
            hosts.wait("the end")
        except BaseException as error:
            if not isinstance(error, (UserError, Interrupted, OSError, KeyboardInterrupt)):
                # A collective that broke off is what a process sees of another's end: which, its heartbeat tells.
                watch.wait_for_cause(error)
            watch.leave(code=_exit_code(error), why=f"{type(error).__name__}: {error}")
            raise
        finally:
            jax.distributed.shutdown()  # type: ignore[no-untyped-call]  # jax leaves it so


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, (UserError, OSError)) else 1


def _place_on_pod() -> Place | None:
    """What JAX detects on a TPU pod, GKE or GCE; None elsewhere.

    `jax.distributed.initialize` detects the same, but can not be asked without being started.
    """
    from jax._src import clusters

    for cluster in (clusters.GceTpuCluster, clusters.GkeTpuCluster):  # in JAX's own order
        if cluster.is_env_present():
            if cluster.get_process_count() == 1:
                return None
            address = cluster.get_coordinator_address(
                timeout_secs=_JOIN_SECONDS, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
            )
            return Place(address, cluster.get_process_count(), cluster.get_process_id())
    return None


def _heartbeat(environment: Mapping[str, str]) -> int:
    text = environment.get(HEARTBEAT) or str(_HEARTBEAT_SECONDS)
    if not text.isdecimal() or int(text) < 2:
        raise HostsError(f"{HEARTBEAT} is {text}: give whole seconds, at least 2")
    return int(text)


def _meet(place: Place, *, heartbeat: int) -> Hosts:
    """All processes are here on return. Raises HostsError when some count otherwise; ends the process with 42 when
    some do not come."""
    # It takes SIGTERM for itself; here a stop goes through the step, so that every process saves the same one.
    jax.config.update("jax_enable_preemption_service", False)  # type: ignore[no-untyped-call]  # as above
    bind = place.address if _is_loopback(place.address) else None
    if place.index == 0:
        _check_free(place.address, bind=bind)
    with ending_unless_met(place.address, index=place.index, count=place.count, seconds=_JOIN_SECONDS):
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            cluster_detection_method="deactivate",
            # When these are over JAX aborts the process, and names no host and no remedy: that is to come only where
            # we can not. The heartbeat counts from one that may be half this time before the death.
            initialization_timeout=2 * _JOIN_SECONDS,
            heartbeat_timeout_seconds=4 * heartbeat,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            coordinator_bind_address=bind,
        )
    from jax._src.distributed import global_state  # the public functions wait by using devices

    among = Hosts(index=place.index, names=["?"] * place.count, client=global_state.client)
    told = among.gather("the start", json.dumps([socket.gethostname(), place.count]))
    names, counts = zip(*map(json.loads, told), strict=True)
    if len(set(counts)) > 1:
        said = ", ".join(f"{count} on {name}" for name, count in zip(names, counts, strict=True))
        raise HostsError(f"the processes do not agree on how many they are ({said}): set {COUNT} alike")
    return Hosts(index=place.index, names=names, client=global_state.client)


def _check_free(address: str, *, bind: str | None) -> None:
    """Raises HostsError where the coordination service can not listen, of which JAX dies without a word."""
    host, _, port = (bind or address).rpartition(":")
    try:
        socket.create_server((host.strip("[]") if bind else "", int(port))).close()
    except (OSError, ValueError, OverflowError) as error:
        raise HostsError(
            f"process 0 can not wait for the others at {address} ({error}): give another {ADDRESS} to all of them, or "
            "end what holds that port"
        ) from error


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
