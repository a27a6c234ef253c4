# SPDX-License-Identifier: Apache-2.0
"""What users of a real host may ask for: bind mounts with their own rights, ports, capabilities; the policy file."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import hosted
from accounts import STAFF_ID, AccountsHost
from hosted import ALICE_UID, BOB_UID, wait_until
from insula.network.firewall import can_filter_ipv6

HOST_KIND = AccountsHost


@pytest.fixture
def here(host: hosted.Host) -> Iterator[AccountsHost]:
    assert isinstance(host, AccountsHost)
    yield host
    host.policy.unlink(missing_ok=True)
    host.root("policy", "reload")


@pytest.fixture
def share(here: AccountsHost) -> Path:
    """A folder of alice's, emptied."""
    path = here.home("alice") / "share"
    for each in path.iterdir() if path.exists() else ():
        each.unlink()
    path.mkdir(exist_ok=True)
    os.chown(path, ALICE_UID, ALICE_UID)
    path.chmod(0o755)
    (path / "file").write_text("hello")
    os.chown(path / "file", ALICE_UID, ALICE_UID)
    return path


def grant(here: AccountsHost, text: str) -> None:
    here.policy.write_text(text)
    here.root("policy", "reload")


# bind mounts


def test_a_user_mounts_its_own_folder_and_owns_what_is_made_in_it(here: AccountsHost, share: Path) -> None:
    script = "cat /s/file; id -u; stat -c %u:%g /s/file; echo new > /s/new; cp /bin/busybox /s/tool; chmod 6755 /s/tool"
    said = here.alice("run", "--rm", "-v", f"{share}:/s", "box", "sh", "-c", script).split()
    assert said == ["hello0", "0:0"]
    for name in ("new", "tool"):
        found = (share / name).stat()
        assert (found.st_uid, found.st_gid) == (ALICE_UID, ALICE_UID), name
    assert "security.capability" not in os.listxattr(share / "tool")


def test_the_mount_has_neither_devices_nor_set_ids(here: AccountsHost, share: Path) -> None:
    options = here.alice(
        "run", "--rm", "-v", f"{share}:/s", "box", "grep", " /s ", "/proc/self/mountinfo"
    ).split()[5]
    assert {"nosuid", "nodev"} <= set(options.split(","))


def test_what_is_anothers_below_it_is_neither_readable_nor_roots(here: AccountsHost, share: Path) -> None:
    for name, uid, mode in (("bobs", BOB_UID, 0o600), ("roots", 0, 0o600), ("shown", 0, 0o644)):
        (share / name).write_text(name)
        os.chown(share / name, uid, uid)
        (share / name).chmod(mode)
    script = "cat /s/bobs; cat /s/roots; chown 0 /s/roots; echo x >> /s/shown; rm /s/none; cat /s/shown; stat -c %u /s/roots"
    done = here.alice.give("run", "--rm", "-v", f"{share}:/s", "box", "sh", "-c", script)
    assert done.out.split() == ["shown65534"] or done.out.split() == ["shown", "65534"], done
    assert (share / "roots").stat().st_uid == 0
    assert (share / "shown").read_text() == "shown"


def test_another_id_of_the_container_leaves_no_file(here: AccountsHost, share: Path) -> None:
    share.chmod(0o777)
    done = here.alice.give("run", "--rm", "-u", "1000", "-v", f"{share}:/s", "box", "touch", "/s/foreign")
    assert done.code != 0
    assert not (share / "foreign").exists()


@pytest.mark.parametrize(
    "source",
    ["/", "/etc", "/proc", "/sys", "/dev", "/dev/null", "/root", "/var/lib", "{folder}/state", "{folder}/run", "{bob}",
     "{alice}/../bob", "{alice}/none", "{alice}/link", "{alice}/link/ssl", "{alice}/fifo", "{alice}/roots"],
)  # fmt: skip
def test_what_is_not_the_users_is_not_mounted(here: AccountsHost, share: Path, source: str) -> None:
    home = here.home("alice")
    if not (home / "link").is_symlink():
        (home / "link").symlink_to("/etc")
        os.mkfifo(home / "fifo", 0o666)
        (home / "roots").mkdir(mode=0o700)
    named = source.format(folder=here.folder, alice=home, bob=here.home("bob"))
    for option in (f"{named}:/s", f"{named}:/s:ro"):
        said = here.alice.fails("run", "--rm", "-v", option, "box", "true", code=125)
        assert "cannot mount host folder" in said or "no such path" not in said


def test_reading_is_not_writing(here: AccountsHost, share: Path) -> None:
    os.chown(share, 0, 0)
    assert "permission denied" in here.alice.fails(
        "run", "--rm", "-v", f"{share}:/s", "box", "true", code=125
    )
    assert here.alice("run", "--rm", "-v", f"{share}:/s:ro", "box", "cat", "/s/file") == "hello"


def test_a_folder_that_was_taken_away_stays_away_at_the_next_start(here: AccountsHost, share: Path) -> None:
    here.alice("run", "-d", "--name", "web", "-v", f"{share}:/s", "box", "sleep", "1000")
    here.alice("stop", "-t", "0", "web")
    os.chown(share, BOB_UID, BOB_UID)
    share.chmod(0o700)
    assert "permission denied" in here.alice.fails("start", "web")
    here.root("user", "set", "bob", "--tenant", "alice")
    try:
        assert "permission denied" in here.bob.fails("start", "web"), (
            "its maker's rights count, not the caller's"
        )
    finally:
        here.root("user", "set", "bob", "--tenant", "bob")
    os.chown(share, ALICE_UID, ALICE_UID)
    here.alice("start", "web")


def test_a_container_whose_maker_is_gone_gets_no_folder(here: AccountsHost, share: Path) -> None:
    here.alice("run", "-d", "--name", "web", "-v", f"{share}:/s", "box", "sleep", "1000")
    here.alice("run", "-d", "--name", "plain", "box", "sleep", "1000")
    here.alice("stop", "-t", "0", "web", "plain")
    here.root("user", "rm", "alice")
    try:
        assert "does not grant" in here.root.fails("--tenant", "alice", "start", "web")
        here.root("--tenant", "alice", "start", "plain")
    finally:
        here.root("user", "add", "alice")


def test_an_admin_mounts_what_it_wants(here: AccountsHost) -> None:
    assert here.root("run", "--rm", "-v", "/etc:/s:ro", "box", "test", "-e", "/s/passwd") == ""


def test_a_user_of_another_machine_has_no_folder(here: AccountsHost) -> None:
    identity = here.folder / "anna.pem"
    here.root("user", "add", "anna", "--remote", "--tenant", "alice", "-o", str(identity))
    done = here.remote("run", "--rm", "-v", f"{here.home('alice')}:/s", "box", "true", identity=identity)
    here.root("user", "rm", "anna")
    identity.unlink()
    assert "does not grant" in done.err


# grants


def test_what_was_granted_to_a_user_a_group_or_a_tenant_passes(here: AccountsHost) -> None:
    words = ("run", "--rm", "-p", "81:80", "box", "true")
    assert "below 1024" in here.alice.fails(*words, code=125)
    for section in ("default", "user.alice", "tenant.alice"):
        grant(here, f"[{section}]\nlow_ports = [81]\n")
        here.alice(*words)
    grant(here, "[user.bob]\nlow_ports = [81]\n")
    here.alice.fails(*words, code=125)


def test_a_granted_folder_is_opened_with_the_users_rights_all_the_same(here: AccountsHost) -> None:
    outside = here.folder / "srv"
    outside.mkdir(mode=0o755, exist_ok=True)
    (outside / "open").mkdir(mode=0o755, exist_ok=True)
    (outside / "closed").mkdir(mode=0o700, exist_ok=True)
    grant(here, f'[tenant.alice]\nbinds = ["{outside}"]\n')
    here.alice("run", "--rm", "-v", f"{outside}/open:/s:ro", "box", "true")
    assert "permission denied" in here.alice.fails(
        "run", "--rm", "-v", f"{outside}/closed:/s:ro", "box", "true", code=125
    )
    assert "does not grant" in here.alice.fails(
        "run", "--rm", "-v", f"{here.home('alice')}:/s", "box", "true", code=125
    )
    here.bob.fails("run", "--rm", "-v", f"{outside}/open:/s:ro", "box", "true", code=125)


def test_a_capability_that_was_taken_back_stops_the_next_start_and_restore(here: AccountsHost) -> None:
    grant(here, '[user.alice]\ncapabilities = ["SYS_ADMIN", "CHOWN", "KILL"]\n')
    here.alice(
        "run", "-d", "--name", "web", "--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", "box", "sleep", "1000"
    )
    here.alice("checkpoint", "create", "web")
    here.alice.give("stop", "-t", "0", "web")
    grant(here, "")
    said = here.alice.fails("start", "web")
    assert "cannot add capability `SYS_ADMIN`" in said
    assert "cannot add capability `SYS_ADMIN`" in here.alice.fails("restore", "web")
    assert "cannot add capability `SYS_ADMIN`" in here.root.fails("--tenant", "alice", "restore", "web")


def test_an_uplink_is_an_admins_unless_granted(here: AccountsHost) -> None:
    assert "does not grant it" in here.alice.fails("network", "create", "--uplink", "lo", "lan")
    grant(here, '[default]\nuplinks = ["eth7"]\n')
    assert "does not grant it" in here.alice.fails("network", "create", "--uplink", "lo", "lan")
    assert "does not grant it" not in here.alice.fails("network", "create", "--uplink", "eth7", "lan")


def test_a_subnet_is_of_the_hosts_pool_unless_granted(here: AccountsHost) -> None:
    # Whoever has the bridge of 8.8.8.0/24 is sent all that the host and its containers say to these addresses.
    for subnet in ("8.8.8.0/24", "192.168.7.0/24", "10.0.0.0/8"):
        assert f"cannot use subnet `{subnet}`" in here.alice.fails(
            "network", "create", "--subnet", subnet, "n"
        )
    said = here.alice.fails("network", "create", "--subnet", "2001:db8:7::/64", "n")
    assert "cannot use subnet `2001:db8:7::/64`" in said and "`subnets` in the policy" in said
    here.alice("network", "create", "--subnet", "10.213.88.0/24", "own")
    grant(here, '[user.alice]\nsubnets = ["192.168.0.0/16", "2001:db8::/32"]\n')
    six = ("--subnet", "2001:db8:7::/64") if can_filter_ipv6() else ()
    here.alice("network", "create", "--subnet", "192.168.7.0/24", *six, "given")
    here.bob.fails("network", "create", "--subnet", "192.168.8.0/24", "n")
    here.root("network", "create", "--subnet", "198.51.100.0/24", "public")
    here.root("network", "rm", "public")


# the file


def test_a_wrong_policy_is_refused_and_the_old_one_stays(here: AccountsHost) -> None:
    grant(here, "[user.alice]\nlow_ports = [82]\n")
    here.policy.write_text("[user.alice]\nlow_ports = [83]\nprivileged = true\n")
    for words in (("policy", "reload"), ("policy", "check", str(here.policy))):
        said = here.root.fails(*words)
        assert "user.alice.privileged: object contains unknown field `privileged` (line 3)" in said
    here.alice("run", "--rm", "-p", "82:80", "box", "true")
    here.alice.fails("run", "--rm", "-p", "83:80", "box", "true", code=125)
    assert "[82]" in here.root("policy", "show")
    assert here.daemon is not None
    here.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: "policy refused" in here.log(), what="it is told")
    here.alice("run", "--rm", "-p", "82:80", "box", "true")


def test_a_changed_policy_counts_after_a_hangup(here: AccountsHost) -> None:
    here.policy.write_text("[user.alice]\nlow_ports = [84]\n")
    assert here.daemon is not None
    here.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: here.alice.give("run", "--rm", "-p", "84:80", "box", "true").code == 0, what="granted")


def test_a_policy_that_others_may_write_is_refused(here: AccountsHost) -> None:
    here.policy.write_text("")
    here.policy.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IWGRP)
    assert "others than root may write it" in here.root.fails("policy", "reload")
    here.policy.chmod(0o644)
    os.chown(here.policy, ALICE_UID, 0)
    assert "others than root may write it" in here.root.fails("policy", "reload")


def test_only_admins_see_and_reload_the_policy(here: AccountsHost) -> None:
    for words in (("show",), ("reload",), ("check", "/dev/null")):
        assert "needs the right `admin`" in here.alice.fails("policy", *words)


def test_a_group_of_the_policy_is_the_users_own(here: AccountsHost) -> None:
    here.groups = {"staff": (STAFF_ID, ["alice"])}
    here.write_accounts()
    grant(here, "[group.staff]\nlow_ports = [85]\n")
    words = ("run", "--rm", "-p", "85:80", "box", "true")
    here.alice.fails(*words, code=125)
    with here.alice.begin(*words, extra_groups=[STAFF_ID]) as process:
        assert process.wait(hosted.DEADLINE_S) == 0
    here.groups = {}
    here.write_accounts()


def test_a_single_file_is_mounted_by_its_handle(here: AccountsHost, share: Path) -> None:
    here.alice("run", "--rm", "-v", f"{share}/file:/f", "box", "sh", "-c", "echo more >> /f")
    assert (share / "file").read_text() == "hellomore\n"
    done = here.alice.give("run", "--rm", "-v", f"{share}/file:/f:ro", "box", "sh", "-c", "echo more >> /f")
    assert "Read-only" in done.err


def test_a_restored_container_has_the_same_folder_with_the_same_rights(
    here: AccountsHost, share: Path
) -> None:
    script = "exec 3>> /s/log; while :; do echo x >&3; sleep 0.05; done"
    here.alice("run", "-d", "--name", "web", "-v", f"{share}:/s", "box", "sh", "-c", script)
    wait_until((share / "log").exists, what="it has begun")
    here.alice("checkpoint", "create", "web")
    before = (share / "log").stat().st_size
    here.alice("restore", "web")
    wait_until(lambda: (share / "log").stat().st_size > before, what="it goes on")
    assert (share / "log").stat().st_uid == ALICE_UID
    here.alice("checkpoint", "create", "web")
    os.chown(share, BOB_UID, BOB_UID)
    share.chmod(0o700)
    assert "permission denied" in here.alice.fails("restore", "web")


# devices

NODE = Path("/dev/insula-test-kmsg")
OPENED = "(: > {0}) 2>/dev/null && echo written; (: < {0}) 2>/dev/null && echo read; stat -c %u:%a {0}"


@pytest.fixture
def node() -> Iterator[Path]:
    """A device of the host's that no container may open unasked: what is written into it is in the kernel's log."""
    NODE.unlink(missing_ok=True)
    os.mknod(NODE, stat.S_IFCHR | 0o600, os.makedev(1, 11))
    yield NODE
    NODE.unlink()


def test_a_device_is_opened_as_far_as_it_was_asked_for(here: AccountsHost, node: Path) -> None:
    def run(device: str, at: Path = node) -> list[str]:
        return here.root("run", "--rm", "--device", device, "box", "sh", "-c", OPENED.format(at)).split()

    assert run(f"{node}:w") == ["written", "0:600"]
    assert run(f"{node}:/dev/log/kernel:wm", Path("/dev/log/kernel")) == ["written", "0:600"]
    assert here.root("run", "--rm", "box", "sh", "-c", "mknod /tmp/n c 1 11 || echo refused").split() == [
        "refused"
    ]


def test_a_device_is_only_for_whom_the_policy_grants_it(here: AccountsHost, node: Path) -> None:
    command = ("create", "--name", "one", "--device", f"{node}:w", "box", "sh", "-c", OPENED.format(node))
    said = here.alice.fails(*command, code=125)
    assert f"cannot use device `{node}`: the policy does not grant it" in said
    grant(here, '[user.alice]\ndevices = ["/dev/insula-test-*"]\n')
    here.alice(*command)
    assert "cannot use device `/dev/kmsg`" in here.alice.fails(
        "run", "--rm", "--device", "/dev/kmsg", "box", "true", code=125
    )
    assert here.alice("start", "-a", "one").split() == ["written", "0:600"]
    grant(here, "[user.alice]\ndevices = []\n")
    assert "the policy does not grant it" in here.alice.fails("start", "one")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("/etc/passwd", "not a path below /dev"),
        ("/dev/../etc/passwd", "not a path below /dev"),
        ("/dev/null:/etc/null", "not a path below /dev"),
        ("/dev/insula-test-none", "no such file"),
        ("/dev/fd:/dev/x", "symbolic links"),
        ("/dev/pts:/dev/x", "it is no device"),
        ("/dev/full:/dev/null", "something else is there"),
        ("/dev/full:/dev/full2:x", "`x` is no access"),
        ("/dev/full:r:w", "cannot use device `/dev/full:r:w`"),
    ],
)
def test_what_is_no_device_is_refused(here: AccountsHost, device: str, reason: str) -> None:
    said = here.root.give("create", "--device", device, "box", "true")
    assert said.code in {2, 125} and reason in said.err, said
