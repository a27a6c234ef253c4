# SPDX-License-Identifier: Apache-2.0
"""nftables: whole rulesets through `nft`, single set elements through netlink.

A ruleset is one text and one transaction: all of it holds, or nothing changed.  Elements (one more container, one more
published port) are on the path of every start, where a process of `nft` costs 10 ms; they are put in by one netlink
batch instead.  Out of scope: what the rules say (`network/firewall.py`).  No word of a user may be formatted into a
ruleset: only addresses and numbers that were parsed, and names of our own making.

Sources: nft(8); `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`.
"""

import errno
import os
import re
import socket
import struct
import subprocess
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from insula.kernel.netlink_message import attribute, nested, text

#: For a hang only.  A ruleset of thousands of elements takes well below a second, but a starved host was seen to need more than
#: 20 s, and who gives up then has no rules at all: insulad did not start.
DEADLINE_S = 180.0

NETLINK_NETFILTER = 12
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 12, 14
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM = 1
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 2
NFTA_DATA_VALUE = 1
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 0x1, 0x4, 0x400
_NLMSG_ERROR = 2
_ANSWER_SECONDS = 10.0

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
#: A batch is one datagram, and each element gets an answer of its own: what a default socket buffer surely holds, and what
#: one element takes of a larger one, the kernel's bookkeeping included.
_SMALL_BATCH = 64
_BYTES_PER_ELEMENT = 2048

_NAME = re.compile(r"[a-z0-9_]{1,31}")


class Family(IntEnum):
    """NFPROTO_*; the name in lower case is nft's word."""

    INET = 1
    BRIDGE = 7


class Element(NamedTuple):
    """One element of a set, or of a map if there is data.  Parts of a concatenation, each padded to four bytes."""

    family: Family
    table: str
    set_name: str
    key: bytes
    data: bytes = b""


class NftRefused(OSError):
    """nft refused a ruleset; nothing was changed."""


def apply(ruleset: str) -> None:
    """Apply a ruleset in one transaction.

    Raises: NftRefused with nft's own words; OSError ENOENT without nft, ETIMEDOUT after the deadline.
    """
    _run(["nft", "-f", "-"], given=ruleset)


def check(ruleset: str) -> None:
    """Have nft read a ruleset and the kernel judge it; nothing is changed.  Raises: as `apply`."""
    _run(["nft", "-c", "-f", "-"], given=ruleset)


def list_table(family: Family, name: str) -> str:
    """Return a table as text.  Raises: NftRefused (ENOENT) if there is none."""
    return _run(["nft", "list", "table", family.name.lower(), _checked(name)])


def delete_table(family: Family, name: str) -> None:
    """Delete a table; that there is none is no error."""
    where = f"{family.name.lower()} {_checked(name)}"
    apply(f"add table {where}\ndelete table {where}\n")


def pad(part: bytes) -> bytes:
    """Pad one part of a concatenated key to four bytes, as the kernel's registers want it."""
    return part + bytes(-len(part) % 4)


def add_elements(elements: Sequence[Element]) -> None:
    """Add elements in one transaction; one that is there already is no error, unless its data differs (EEXIST)."""
    _change(elements, kind=NFT_MSG_NEWSETELEM)


def delete_elements(elements: Sequence[Element]) -> None:
    """Delete elements; one that is not there is no error.  Waits for an RCU grace period: 10 to 20 ms."""
    try:
        _change(elements, kind=NFT_MSG_DELSETELEM)
    except FileNotFoundError:
        if len(elements) > 1:
            for element in elements:
                delete_elements([element])


def _run(command: list[str], *, given: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"nft: no answer within {DEADLINE_S:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[0] if lines else f"exit code {done.returncode}"
        code = errno.ENOENT if "No such file" in reason else errno.EINVAL
        raise NftRefused(code, f"nft: {reason}")
    return done.stdout


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name of ours: {name!r}")
    return name


def _change(elements: Sequence[Element], *, kind: int) -> None:
    if not elements:
        return
    verb = "NFT_MSG_NEWSETELEM" if kind == NFT_MSG_NEWSETELEM else "NFT_MSG_DELSETELEM"
    batch = _message(NFNL_MSG_BATCH_BEGIN, _general(0, NFNL_SUBSYS_NFTABLES), flags=0, sequence=0)
    for sequence, element in enumerate(elements, start=1):
        flags = _NLM_F_ACK | (_NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0)
        body = _general(element.family, 0) + _element(element)
        batch += _message(NFNL_SUBSYS_NFTABLES << 8 | kind, body, flags=flags, sequence=sequence)
    end = len(elements) + 1
    batch += _message(NFNL_MSG_BATCH_END, _general(0, NFNL_SUBSYS_NFTABLES), flags=0, sequence=end)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
    ) as channel:
        channel.bind((0, 0))
        channel.settimeout(_ANSWER_SECONDS)
        if len(elements) > _SMALL_BATCH:
            for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
                channel.setsockopt(socket.SOL_SOCKET, option, len(elements) * _BYTES_PER_ELEMENT)
        channel.send(batch)
        _await_answers(channel, count=len(elements), what=f"{verb} `{elements[0].set_name}`")


def _await_answers(channel: socket.socket, *, count: int, what: str) -> None:
    answered = 0
    while answered < count:
        data = channel.recv(65536)
        offset = 0
        while offset + 20 <= len(data):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", data, offset + 16)[0]
                if code:
                    raise OSError(code, f"{what}: {os.strerror(code)}")
                answered += bool(sequence)
            offset += max(16, (length + 3) & ~3)


def _message(kind: int, body: bytes, *, flags: int, sequence: int) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags | _NLM_F_REQUEST, sequence, 0) + body


def _general(family: int, resource: int) -> bytes:
    # struct nfgenmsg: family, version 0, resource id in network order.
    return struct.pack("!BBH", family, 0, resource)


def _element(element: Element) -> bytes:
    value = nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, element.key))
    if element.data:
        value += nested(NFTA_SET_ELEM_DATA, attribute(NFTA_DATA_VALUE, element.data))
    return (
        text(NFTA_SET_ELEM_LIST_TABLE, _checked(element.table))
        + text(NFTA_SET_ELEM_LIST_SET, _checked(element.set_name))
        + nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, value))
    )
