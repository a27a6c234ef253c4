# SPDX-License-Identifier: Apache-2.0
"""Trials of networking, each in a network namespace that dies with the trial.  Sources: ip-link(8), nft(8)."""

import subprocess
from pathlib import Path

from insula.kernel import namespace
from insula.kernel.trials import Absent, in_child

_SECONDS = 10.0
_NFT = """\
table inet insula_probe {
  map ports { type inet_proto . inet_service : ipv4_addr . inet_service; }
  chain before { type nat hook prerouting priority dstnat; dnat ip to meta l4proto . th dport map @ports; }
  chain after { type nat hook postrouting priority srcnat; masquerade; }
  chain pass { type filter hook forward priority filter; ct state established accept; }
}
"""
_NFT6 = """\
table bridge insula_probe {
  set places { typeof iifname . @th,64,128; }
  chain enter { type filter hook prerouting priority dstnat; icmpv6 type nd-neighbor-advert iifname . @th,64,128 @places accept; }
}
table inet insula_probe {
  map ports { type inet_proto . inet_service : ipv6_addr . inet_service; }
  chain before { type nat hook prerouting priority dstnat; dnat ip6 to meta l4proto . th dport map @ports; }
  chain after { type nat hook postrouting priority srcnat; meta nfproto ipv6 masquerade; }
}
"""


def veth() -> str:
    """Make a pair of veths."""
    return _in_network("ip", "link", "add", "insula-a", "type", "veth", "peer", "name", "insula-b")


def bridge() -> str:
    """Make a bridge."""
    return _in_network("ip", "link", "add", "insula-br", "type", "bridge")


def nftables() -> str:
    """Load a table with NAT, a map of ports and connection tracking, as insula's networks use them."""
    return _in_network("nft", "-f", "-", standard_input=_NFT)


def ipv6() -> str:
    """Load the table by which containers are walled in IPv6, if the kernel gives interfaces IPv6."""
    try:
        disabled = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise Absent("the kernel was built or booted without it") from None
    if disabled != "0":
        raise Absent("it is switched off (disable_ipv6)")
    return _in_network("nft", "-f", "-", standard_input=_NFT6)


def _in_network(*command: str, standard_input: str = "") -> str:
    return in_child(lambda: _run(command, standard_input), namespaces=namespace.CLONE_NEWNET)


def _run(command: tuple[str, ...], standard_input: str) -> str:
    try:
        done = subprocess.run(
            command, input=standard_input, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise Absent(f"`{command[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise Absent(f"`{command[0]}` did not end within {_SECONDS:.0f} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise Absent(lines[0] if lines else f"`{command[0]}` ended with {done.returncode}")
    return ""
