# SPDX-License-Identifier: Apache-2.0
"""Tell neighbours, and this host's bridge, where a container that has arrived is now: at once, and again.

One announcement is not enough: a port that has just joined its bridge forwards nothing for a moment, a frame may be lost, and
whoever missed it sends to the old place until the container says something by itself.  RFC 5227 repeats it, too.
"""

import logging
import os
import signal
import threading

from insula.kernel import announce
from insula.model.record import Attachment

LOG = logging.getLogger(__name__)
PAUSES_S = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0)
"""Before each announcement."""
INTERFACE = "eth0"


def announce_arrival(attachment: Attachment, pid: int, *, closing: threading.Event) -> None:
    """Begin to announce; goes on in a thread of its own.  pid: of the container's pid 1, whose network is its own."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        LOG.warning("neighbours were not told", extra={"fields": {"reason": str(error)}})
        return
    threading.Thread(
        target=_go_on, args=(attachment, pid, process, closing), name="announce", daemon=True
    ).start()


def _go_on(attachment: Attachment, pid: int, process: int, closing: threading.Event) -> None:
    try:
        for pause in PAUSES_S:
            if closing.wait(pause):
                return
            # Opened anew each time: whoever keeps a network open keeps its interfaces, also when it has moved on.
            network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                signal.pidfd_send_signal(process, 0)  # else the pid may be somebody else's by now
                for address in filter(None, (attachment.address, attachment.address6)):
                    announce.announce_inside(network, INTERFACE, mac=attachment.mac, address=address)
            finally:
                os.close(network)
    except OSError as error:  # it has ended, or moved on
        LOG.info("no more announcements", extra={"fields": {"reason": str(error)}})
    finally:
        os.close(process)
