# SPDX-License-Identifier: Apache-2.0
"""F3, F9: restores and moves by whom they are not, or no longer, allowed."""

import json
import threading

import pytest

from accounts import AccountsHost
from hosted import Host, Person


def test_f3_right_that_was_taken_back_is_not_restored(ruled: AccountsHost) -> None:
    ruled.policy.write_text('[user.alice]\ncapabilities = ["SYS_PTRACE", "CHOWN", "KILL"]\n')
    ruled.root("policy", "reload")
    ruled.alice(
        "run", "-d", "--name", "c", "--cap-drop", "ALL", "--cap-add", "SYS_PTRACE", "box", "sleep", "1000"
    )
    ruled.alice("checkpoint", "create", "c", deadline_s=60)
    ruled.policy.write_text('[user.alice]\ncapabilities = ["CHOWN"]\n')
    ruled.root("policy", "reload")
    assert "SYS_PTRACE" in ruled.alice.fails("restore", "c")
    assert ruled.alice.look("c")["status"] == "exited"
    ruled.alice("rm", "-f", "c")


@pytest.mark.parametrize("target", ["nowhere", "solo", "127.0.0.1:22", "../x", "", "-x"])
def test_f9_move_to_where_no_right_leads(the_host: Host, target: str) -> None:
    alice = the_host.alice
    alice.ask("POST", "/v1/containers", body=b'{"image": "box", "command": ["sleep", "9"], "name": "m"}')
    status, answer = alice.ask(
        "POST", "/v1/containers/m/migrate", body=json.dumps({"target": target}).encode()
    )
    if status == 202:
        done = alice.give("operation", "follow", answer["id"]) if target else None
        found = alice.ask("GET", f"/v1/operations/{answer['id']}")[1]
        assert found["status"] == "failed", (found, done)
    else:
        assert 400 <= status < 500
    assert alice.look("m")["status"] == "created"
    the_host.remove_all()


def test_f9_moves_at_once_of_anothers_container(host: Host, alice: Person, bob: Person) -> None:
    alice("run", "-d", "--name", "c", "box", "sleep", "1000")
    identifier, answers = alice.look("c")["id"], []
    asked = [
        threading.Thread(
            target=lambda: answers.append(
                bob.ask("POST", f"/v1/containers/{identifier}/migrate", body=b'{"target": "x"}')[0]
            )
        )
        for _ in range(50)
    ]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert set(answers) <= {403, 404, 429} and len(answers) == 50
    assert alice.look("c")["status"] == "running"
