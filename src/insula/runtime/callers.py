# SPDX-License-Identifier: Apache-2.0
"""Have a program accept who waits at its door before it is frozen.

CRIU cannot carry a TCP connection that the kernel has taken and the program has not accepted yet (its `criu/sk-inet.c`,
"In-flight connection"): it refuses the dump, and the program runs on.  Such a connection is there for the blink of an eye in most
programs, and always in one that accepts more slowly than clients come.  So, right before a freeze:

    nobody waits            freeze now
    somebody waits longer   who wants to come in is not let in, by a rule for the container's port, and held (`kernel/hold.py`)
                            until it runs again: his kernel would ask again after a second (RFC 6298).  Everybody who is
                            connected is served on, and the program accepts who waits

The rule ends with the freeze; if insulad is killed meanwhile, its next start takes it away (`recover.py`).  Taking the port off
its bridge instead would lose answers: a connection that the program has closed after its last word has no owner any more,
CRIU does not find it, and nobody would send that word again.

Sources: `net/ipv4/tcp_diag.c`: a socket that listens has in `rqueue` who was not accepted yet (`sk_ack_backlog`); nft(8),
bridge family.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from insula.kernel import nft
from insula.kernel.hold import Hold
from insula.kernel.sock_diag import TcpState
from insula.model.record import ContainerRecord
from insula.runtime.context import Runtime
from insula.runtime.leavers import sockets_of

LOG = logging.getLogger(__name__)

GLANCE_SECONDS = 0.02
ACCEPT_SECONDS = 1.0
LOOK_SECONDS = 0.001
_RULE = """
table bridge {table} {{
    chain door {{
        type filter hook postrouting priority 0
        oifname "{interface}" meta l4proto tcp tcp flags & (syn | ack) == syn drop
    }}
}}
"""


@contextmanager
def taken_in(
    runtime: Runtime, record: ContainerRecord, *, hold: Hold | None, is_again: bool
) -> Iterator[None]:
    """Have the program accept who waits, as far as it does so in ACCEPT_SECONDS, and nobody new until the end.

    hold: gets who comes meanwhile.
    is_again: CRIU has met somebody before, whom a look did not show.
    """
    with contextlib.ExitStack() as held:
        if record.attachment is not None and (
            is_again or not _wait_alone(runtime, record.pid, seconds=GLANCE_SECONDS)
        ):
            held.callback(open_door, record)
            _close_door(record, interface=record.attachment.interface, hold=hold)
            _wait_alone(runtime, record.pid, seconds=ACCEPT_SECONDS)
        yield


def _wait_alone(runtime: Runtime, pid: int, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while has_callers(pid):
        if time.monotonic() > deadline or runtime.closing.wait(LOOK_SECONDS):
            return False
    return True


def has_callers(pid: int) -> bool:
    """Tell whether a connection waits to be accepted, or to be made, in the network namespace of a process."""
    found = sockets_of(pid, (TcpState.SYN_RECV, TcpState.LISTEN))
    return any(each.state is TcpState.SYN_RECV or each.waiting for each in found)


def _close_door(record: ContainerRecord, *, interface: str, hold: Hold | None = None) -> None:
    try:
        if hold is not None:
            hold.start_with_callers()
        nft.apply(_RULE.format(table=_table(record), interface=interface))
    except OSError as error:
        LOG.warning("callers are let in before a freeze", extra={"fields": {"reason": str(error)}})


def open_door(record: ContainerRecord) -> None:
    """Let callers in again; does nothing if they are let in."""
    try:
        nft.delete_table(nft.Family.BRIDGE, _table(record))
    except OSError as error:
        LOG.warning("callers are not let in", extra={"fields": {"reason": str(error)}})


def _table(record: ContainerRecord) -> str:
    return f"insula_door_{record.id[:12]}"
