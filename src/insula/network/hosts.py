# SPDX-License-Identifier: Apache-2.0
"""What stands in a container's /etc/hosts.  Pure.  Source: hosts(5)."""

from insula.model.record import Attachment


def hosts_entries(attachment: Attachment | None, *, hostname: str) -> str:
    """Return the text of a container's /etc/hosts."""
    addresses = (attachment.address, attachment.address6) if attachment else ("127.0.1.1",)
    own = "".join(f"{address}\t{hostname}\n" for address in addresses if address)
    return f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}"
