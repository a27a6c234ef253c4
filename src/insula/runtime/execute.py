# SPDX-License-Identifier: Apache-2.0
"""Attach to a container's program, run one more in it, resize its terminal."""

import json
import secrets

from insula.boot.protocol import AttachPlan
from insula.model.errors import WrongState
from insula.model.grant import Grant
from insula.model.lifecycle import Status
from insula.model.spec import ExecSpec
from insula.runtime.context import Runtime
from insula.runtime.plan import exec_plan


def execute(
    grant: Grant,
    runtime: Runtime,
    ref: str,
    *,
    spec: ExecSpec,
    preamble: str = "",
    connection: int = -1,
) -> str:
    """Run a program in a running container.

    connection: of the client, -1 to detach.  Returns: the id of the program.
    Raises: WrongState, CommandNotFound, CommandNotExecutable, StartFailed.
    """
    found = runtime.find_alive(grant, ref)
    exec_key = secrets.token_hex(32)
    attach = None
    if connection >= 0:
        attach = AttachPlan(preamble=preamble, stdin=spec.stdin_open, hello=json.dumps({"id": exec_key}))
    # Under the lock: a process that enters while its container is being frozen would hold the spawner up.
    with runtime.locked(found.id):
        record = runtime.store.get_container(found.id)
        if record.status is not Status.RUNNING:
            raise WrongState(
                f"cannot execute in `{record.name}`: it is {record.status.value}",
                hint="only a running container can be entered",
            )
        plan = exec_plan(record, spec)
        runtime.spawner.execute(record.id, plan, exec_key=exec_key, attach=attach, connection=connection)
    return exec_key


def attach(grant: Grant, runtime: Runtime, ref: str, *, preamble: str, connection: int, stdin: bool) -> None:
    """Give a connection the streams of a running container.  Raises: WrongState."""
    record = runtime.find_alive(grant, ref)
    plan = AttachPlan(
        preamble=preamble, stdin=stdin and record.spec.stdin_open, hello=json.dumps({"id": record.id})
    )
    runtime.spawner.attach(record.id, plan, connection=connection)


def resize(grant: Grant, runtime: Runtime, ref: str, *, rows: int, columns: int) -> None:
    """Tell a container's terminal its size in characters."""
    record = runtime.find_alive(grant, ref)
    runtime.spawner.resize(record.id, rows, columns=columns)
