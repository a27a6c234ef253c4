# SPDX-License-Identifier: Apache-2.0
"""Hold a container to a recorded profile, or let it go again.  It counts from the container's next start on."""

from msgspec.structs import replace

from insula.model.grant import Grant
from insula.model.spec import AppliedProfile
from insula.runtime.context import Runtime


def confine(grant: Grant, runtime: Runtime, ref: str, *, profile: AppliedProfile | None) -> None:
    """Write into a container's specification what it is held to; None: nothing but what holds for all.

    Raises: ContainerNotFound.
    """
    found = runtime.find(grant, ref)
    with runtime.locked(found.id):
        runtime.store.change_container(
            found.id, lambda now: replace(now, spec=replace(now.spec, profile=profile))
        )
