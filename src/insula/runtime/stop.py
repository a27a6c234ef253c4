# SPDX-License-Identifier: Apache-2.0
"""Stop and kill: end a container's first process, and wait until its end is written down."""

import time
from dataclasses import dataclass

from msgspec.structs import replace

from insula.model.errors import ContainerNotFound, StartFailed, WrongState
from insula.model.grant import Grant
from insula.model.lifecycle import ALIVE, Status
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime
from insula.runtime.signals import signal_number

KILL_SECONDS = 15.0
"""After SIGKILL; what then still lives hangs in the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """A container that was asked to end."""

    record: ContainerRecord
    seconds: int
    """How long it may take before it is killed."""


def stop(grant: Grant, runtime: Runtime, ref: str, *, signal: str = "", timeout_s: int | None = None) -> bool:
    """Ask the program to end; kill it when it does not within the time.

    Returns: False if it did not run.  Raises: WrongState if it hangs in the kernel.
    """
    begun = begin_stop(grant, runtime, ref, signal=signal, timeout_s=timeout_s)
    if begun is None:
        return False
    if not wait_for_end(runtime, begun.record, seconds=begun.seconds):
        force_stop(grant, runtime, begun)
        if not wait_for_end(runtime, begun.record, seconds=KILL_SECONDS):
            raise WrongState(f"cannot stop `{begun.record.name}`: it does not end, even killed")
    return True


def begin_stop(
    grant: Grant, runtime: Runtime, ref: str, *, signal: str = "", timeout_s: int | None = None
) -> Stopping | None:
    """Ask the program to end, and do not wait.  Returns: None if it does not run."""
    record = runtime.find(grant, ref)
    number = signal_number(signal or record.spec.stop_signal or record.config.stop_signal or "TERM")
    with runtime.locked(record.id):  # a restart that is under way counts as running
        record = runtime.store.change_container(record.id, lambda now: replace(now, stopped_by_user=True))
    if record.status not in ALIVE:
        return None
    _mark_and_send(runtime, record, number=number)
    return Stopping(record=record, seconds=record.spec.stop_timeout_s if timeout_s is None else timeout_s)


def force_stop(_grant: Grant, runtime: Runtime, stopping: Stopping) -> None:
    """Kill what did not end in its time; another run of the container, begun meanwhile, is left alone."""
    try:
        now = runtime.store.get_container(stopping.record.id)
    except ContainerNotFound:
        return
    if now.pid == stopping.record.pid:
        _mark_and_send(runtime, now, number=9)


def _mark_and_send(runtime: Runtime, record: ContainerRecord, *, number: int) -> None:
    with runtime.locked(record.id):
        runtime.store.change_container(record.id, lambda now: replace(now, stopped_by_user=True))
        _send(runtime, record, number=number)
        if record.status is Status.PAUSED:
            runtime.group(record).thaw()


def _send(runtime: Runtime, record: ContainerRecord, *, number: int) -> None:
    try:
        runtime.spawner.signal(record.id, number)
    except StartFailed:  # it has just ended by itself
        return


def kill(grant: Grant, runtime: Runtime, ref: str, *, signal: str) -> None:
    """Send a signal to the program.  Raises: WrongState if it does not run; InvalidSpec for an unknown signal."""
    number = signal_number(signal)
    found = runtime.find_alive(grant, ref)
    # Under the lock: a signal to a container on its way elsewhere waits until it is known where it runs.
    with runtime.locked(found.id):
        record = runtime.find_alive(grant, found.id)
        _send(runtime, record, number=number)
        if number == 9 and record.status is Status.PAUSED:
            runtime.group(record).thaw()


def wait_for_end(runtime: Runtime, record: ContainerRecord, *, seconds: float) -> bool:
    """Wait until that run of the container is written down as ended.  Returns: whether it is."""
    deadline = time.monotonic() + seconds
    with runtime.ended:
        while True:
            try:
                now = runtime.store.get_container(record.id)
            except ContainerNotFound:
                return True
            if now.status not in ALIVE or now.pid != record.pid:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            runtime.ended.wait(left)
