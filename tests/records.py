# SPDX-License-Identifier: Apache-2.0
"""A container's record as a store holds one, for tests of what is done with records."""

from msgspec.structs import replace

from insula.model.lifecycle import Status
from insula.model.record import ContainerRecord, ImageConfig
from insula.model.spec import Spec

_CONTAINER = ContainerRecord(
    id="a" * 64,
    name="web",
    tenant="alice",
    spec=Spec(image="host"),
    image="host",
    layers=(),
    config=ImageConfig(),
    status=Status.RUNNING,
    uid_base=0,
    created_at=0.0,
)


def container_record(**fields: object) -> ContainerRecord:
    """Return that of a running container `web` of alice's, with these fields of its own."""
    return replace(_CONTAINER, **fields)
