# SPDX-License-Identifier: Apache-2.0
"""Load the kernel modules that containers and their moves need, by one run of modprobe, before anything needs them.

The kernel loads them by itself, too, when it first meets what is in them: a process of modprobe for each.  In nftables that
is amid a transaction, which then begins anew: the first ruleset after a boot did so for a dozen modules, and took ten times
as long as all of them take here.  For CRIU's it is amid a move's pause.

Out of scope: modules that are named by the hardware.
Sources: modprobe(8); net/netfilter/nf_tables_api.c `nft_request_module`; net/core/sock_diag.c.
"""

import contextlib
import subprocess
from pathlib import Path

MODULES = (
    # the root file systems
    "overlay",
    # limits of disk space
    "loop",
    # the networks: their ports and rules (`network/firewall.py`)
    "bridge", "veth", "nf_tables",
    "nft_chain_nat", "nft_connlimit", "nft_ct", "nft_fib_inet", "nft_masq", "nft_meta_bridge", "nft_nat", "nft_reject_inet",
    # what CRIU asks for sockets, and for connections that are tracked
    "af_packet_diag", "inet_diag", "netlink_diag", "raw_diag", "tcp_diag", "udp_diag", "unix_diag",
    "nf_conntrack_netlink",
)  # fmt: skip
DEADLINE_S = 180.0


def load_all() -> None:
    """Load what is not there yet.  What this kernel has built in, has not, or may not load is no error."""
    if not Path("/proc/modules").exists():
        return
    with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
        subprocess.run(
            ("modprobe", "--all", "--quiet", *MODULES),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )
