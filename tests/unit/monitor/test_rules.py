# SPDX-License-Identifier: Apache-2.0
"""Rules: what they match, and how a wrong one is refused."""

from pathlib import Path

import pytest

from insula.model.errors import InvalidRule
from insula.model.monitor import Event, EventKind
from insula.monitor import rules
from insula.monitor.rule_text import read_rules, warnings_of
from insula.monitor.rules import Rule, RuleAction, cost_of, wish_of

STARTER = Path(rules.__file__).parent / "starter.toml"


def event(kind: EventKind, **fields: object) -> Event:
    return Event(at=0.0, container="id", name="web", kind=kind, **fields)  # type: ignore[arg-type]


def starter() -> dict[str, Rule]:
    return {rule.name: rule for rule in read_rules(STARTER.read_text(), file="starter.toml")}


@pytest.mark.parametrize(("name", "seen", "is_alarm"), [
    ("shell-in-a-server", event(EventKind.EXEC, path="/bin/sh"), True),
    ("shell-in-a-server", event(EventKind.EXEC, path="/usr/bin/bash"), True),
    ("shell-in-a-server", event(EventKind.EXEC, path="/usr/bin/python3"), False),
    ("shell-in-a-server", event(EventKind.EXEC, path="…/bin/sh"), True),
    ("shell-in-a-server", event(EventKind.EXEC, path="…/python3"), False),
    ("write-below-usr", event(EventKind.FILE, call="openat", path="/usr/bin/x", detail="O_WRONLY|O_CREAT"), True),
    ("write-below-usr", event(EventKind.FILE, call="openat", path="/usr/bin/x", detail="O_RDONLY"), False),
    ("write-below-usr", event(EventKind.FILE, call="unlink", path="/usr/bin/x"), True),
    ("write-below-usr", event(EventKind.FILE, call="unlink", path="/usr/bin/x", error="EROFS"), False),
    ("write-below-usr", event(EventKind.FILE, call="unlink", path="/usr/lib/x/__pycache__/y"), False),
    ("write-below-usr", event(EventKind.FILE, call="rename", path="/tmp/x", other_path="/etc/passwd"), True),
    ("write-below-usr", event(EventKind.FILE, call="rename", path="/tmp/__pycache__/x", other_path="/etc/passwd"), True),
    ("write-below-usr", event(EventKind.FILE, call="rename", path="/etc/passwd", other_path="/tmp/__pycache__/x"), True),
    ("write-below-usr", event(EventKind.FILE, call="rename", path="/tmp/x", other_path="/usr/lib/__pycache__/x"), False),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="/usr/lib/__pycache__/../../bin/sh"), True),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="/usr/lib/../lib/./__pycache__/x"), False),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="/tmp/../etc/passwd"), True),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="//etc/passwd"), True),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="…/a/b" + "/.." * 40 + "/etc/passwd"), True),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="…/a/etc/passwd"), True),  # …/ may be /usr
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="/tmp/" + "./" * 509, is_cut=True), True),
    ("write-below-usr", event(EventKind.FILE, call="openat", detail="O_WRONLY", path="/usr/lib/__pycache__/" + "./" * 501, is_cut=True), True),  # what follows was cut off
    ("new-outgoing-address", event(EventKind.NETWORK, call="connect", address="192.0.2.1:80"), True),
    ("new-outgoing-address", event(EventKind.NETWORK, call="connect", address="[2001:db8::1]:80"), True),
    ("new-outgoing-address", event(EventKind.NETWORK, call="connect", address="unix:/x"), False),
    ("new-outgoing-address", event(EventKind.NETWORK, call="bind", address="0.0.0.0:80"), False),
    ("privilege-change", event(EventKind.CAPABILITY, detail="SYS_ADMIN refused"), True),
    ("privilege-change", event(EventKind.CAPABILITY, detail="CHOWN granted"), False),
    ("kernel-tampering", event(EventKind.KERNEL, call="ptrace"), True),
    ("kernel-tampering", event(EventKind.SECCOMP, call="mount", error="EPERM"), True),
    ("kernel-tampering", event(EventKind.SECCOMP, call="mkdir", error="EPERM"), False),
    ("crypto-miner-ports", event(EventKind.NETWORK, call="connect", address="192.0.2.1:3333"), True),
    ("crypto-miner-ports", event(EventKind.NETWORK, call="connect", address="192.0.2.1:33"), False),
])  # fmt: skip
def test_the_starter_set_matches(name: str, seen: Event, is_alarm: bool) -> None:
    assert starter()[name].matches(seen) is is_alarm


@pytest.mark.parametrize(("text", "reason"), [
    ("[[rule]]\nname == 1\n", "line 2"),
    ("[[rules]]\nname = 'x'", "rules"),
    ("\n\n[[rule]]\nname = 'x'\nkinds = ['exec']\nbogus = 1", "line 6"),
    ("[[rule]]\nname = 'X y'\nkinds = ['exec']", "name"),
    ("[[rule]]\nname = 'x'\nkinds = ['bogus']", "kinds"),
    ("[[rule]]\nname = 'x'", "everything would be an alarm"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\naction = 'explode'", "action"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\naction = 'webhook'", "needs one"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\nurl = 'http://a'", "belongs to"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\naction = 'webhook'\nurl = 'file:///etc'", "no address"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\n[[rule]]\nname = 'x'\nkinds = ['exec']", "line 5"),
    ("# one\n[[rules]]\nname = 'x'", "`r.toml`, line 2"),
    ("[[rule]] # one\nname = 'X'\nkinds = ['exec']\n[[rule]]\nname = 'y'\nkinds = ['exec']", "line 2"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\n[[ rule ]] # two\nname = 'y'\nkinds = ['bogus']", "line 6"),
    ("[[rule]]\nname = 'x'\ndescription = \"\"\"\n[[rule]]\nkinds = [\"\"]\n\"\"\"\nkinds = ['bogus']", "line 7"),
    ("[[rule]]\nname = 'x'\ndescription = '''\n[[rule]]'''\nkinds = ['bogus']", "line 5"),
    ("[[rule]]\nname = 'x'\ndescription = \"#\"\n  kinds = [\n 'exec',\n 'bogus']", "line 4"),
    ("[[rule]]\nkinds = ['exec']\n# name\n[[rule]]\nname = 'x'\nkinds = ['exec']", "line 1: "),
    ("rule = [{name = 'x', kinds = ['exec']}, {name = 'y'}]", "rule 2: "),
    ("[[rule]]\nname = 'x'\ncalls = ['conect']", "line 3: `conect`: there is no such system call; there is `connect`"),
    ("[[rule]]\nname = 'x'\nkinds = ['file']\nerrors = ['none', 'EPREM']", "line 4: `EPREM`: there is no such error; there is `EPERM`"),
    ("[[rule]]\nname = 'x'\nkinds = ['file']\nerrors = ['EWOULDBLOCK']", "it is told as `EAGAIN`"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\ncalls = ['execve']", "line 4: no event of kind `exec` has a system call" ),
    ("[[rule]]\nname = 'x'\nkinds = ['file']\ncalls = ['connect']", "`connect` is told as kind `network`"),
    ("[[rule]]\nname = 'x'\nkinds = ['file', 'network']\ncalls = ['connect']", "none of `calls` is told as kind `file`"),
    ("[[rule]]\nname = 'x'\ncalls = ['getpid']", "`getpid` is only counted"),
    ("[[rule]]\nname = 'x'\nkinds = ['oom', 'file']\npaths = ['/x']", "line 4: no event of kind `oom` has a path"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\nerrors = ['EPERM']", "no event of kind `exec` has an error"),
    ("[[rule]]\nname = 'x'\nkinds = ['file']\naddresses = ['*:80']", "no event of kind `file` has an address"),
    ("[[rule]]\nname = 'x'\nkinds = ['file']\nis_new = true", "as `is_new` wants"),
    ("[[rule]]\nname = 'x'\nkinds = ['network']\nis_writing = true", "as `is_writing` wants"),
    ("[[rule]]\nname = 'x'\npaths = ['/x']\naddresses = ['*:80']", "no event has a path and an address"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\ncommands = ['a-name-that-is-too-long']", "no thread's name"),
    ("[[rule]]\nname = 'x'\nkinds = ['exec']\naction = 'webhook'\nurl = 'http:///etc'", "line 5: `http:///etc` is no address"),
])  # fmt: skip
def test_a_wrong_rule_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(InvalidRule, match=r"r\.toml") as caught:
        read_rules(text, file="r.toml")
    assert reason in caught.value.message


def test_a_rule_is_about_some_containers() -> None:
    (rule,) = read_rules(
        "[[rule]]\nname='x'\nkinds=['exec']\ncontainers=['web-*']\ntenants=['alice']", file="r"
    )
    assert rule.is_meant(container="web-1", tenant="alice")
    assert not rule.is_meant(container="db", tenant="alice")
    assert not rule.is_meant(container="web-1", tenant="bob")
    assert (rule.action, rule.quiet_s) == (RuleAction.LOG, 60)


@pytest.mark.parametrize(("seen", "is_alarm"), [
    (event(EventKind.FILE, call="unlink", path="/tmp/x"), False),
    (event(EventKind.FILE, call="unlink", path="/etc/x"), True),
    (event(EventKind.FILE, call="rename", path="/tmp/x", other_path="/etc/x"), True),
    (event(EventKind.FILE, call="rename", path="/tmp/x", other_path="/tmp/y"), False),
    (event(EventKind.FILE, call="symlink", path="/tmp/x", other_path="what/it/says"), False),
    (event(EventKind.MOUNT, call="mount", path="/tmp/x", other_path="tmpfs"), False),
    (event(EventKind.MOUNT, call="mount", path="/etc/x", other_path="tmpfs"), True),
    (event(EventKind.MOUNT, call="fsmount"), True),
])  # fmt: skip
def test_without_paths_all_but_exceptions_is_an_alarm(seen: Event, is_alarm: bool) -> None:
    (rule,) = rules_of("name='x'\nkinds=['file', 'mount']\nexcept_paths=['/tmp/*']")
    assert rule.matches(seen) is is_alarm


def test_only_what_rules_ask_for_is_watched() -> None:
    found = starter()
    assert wish_of([found["shell-in-a-server"]]).kinds == (EventKind.EXEC,)
    assert EventKind.FILE in wish_of(list(found.values())).kinds


def rules_of(*texts: str) -> tuple[Rule, ...]:
    return read_rules("".join(f"[[rule]]\n{text}\n" for text in texts), file="r.toml")


def test_a_rule_without_kinds_takes_nothing_from_the_others() -> None:
    found = rules_of("name='oom'\nkinds=['oom', 'signal']", "name='tracing'\ncalls=['ptrace']")
    assert set(wish_of(found).kinds) == {EventKind.OOM, EventKind.SIGNAL, EventKind.KERNEL}


def test_a_rule_that_names_neither_kinds_nor_calls_is_about_what_can_have_its_fields() -> None:
    found = rules_of("name='oom'\nkinds=['oom']", "name='x'\npaths=['/etc/x']")
    assert set(wish_of(found).kinds) == {EventKind.OOM, EventKind.FILE, EventKind.EXEC, EventKind.MOUNT}


@pytest.mark.parametrize("text", [
    "kinds = ['exec', 'file']\npaths = ['/bin/*']",
    "kinds = ['exec']\nerrors = ['none']",
    "kinds = ['seccomp', 'drift']\ncalls = ['getpid', 'connect']\naddresses = ['*']",
    "kinds = ['file']\ncalls = ['execve']\nerrors = ['EACCES']",
    "calls = ['connect', 'sendto']\nis_new = true",
    "kinds = ['exec']\ncommands = ['a-name-that-is-long*']",
])  # fmt: skip
def test_what_can_match_is_taken(text: str) -> None:
    assert rules_of(f"name = 'x'\n{text}")


def test_what_never_acts_on_this_kernel_is_said() -> None:
    found = rules_of(
        "name='a'\nkinds=['capability']", "name='b'\nkinds=['capability', 'oom']", "name='c'\nkinds=['oom']"
    )
    first, second = warnings_of(found, untold={EventKind.CAPABILITY})
    assert first.startswith("rule `a`: this kernel tells no events of kind `capability`")
    assert first.endswith("it never acts")
    assert second.startswith("rule `b`")
    assert "never" not in second
    assert warnings_of(found) == ()


def test_a_pattern_of_a_path_that_does_not_begin_at_the_root_is_doubtful() -> None:
    found = rules_of(
        "name='a'\nkinds=['exec']\npaths=['/bin/sh', '*/sh', 'bin/sh']",
        "name='b'\nkinds=['mount']\npaths=['tmpfs']",
    )
    (doubt,) = warnings_of(found)
    assert "`bin/sh` begins with no `/`" in doubt


def test_what_they_cost_is_said() -> None:
    cheap, dear = rules_of(
        "name='a'\nkinds=['exec', 'oom', 'drift']", "name='b'\ncalls=['connect', 'ptrace']"
    )
    assert cost_of([cheap], can_hook=False) == "only what happens in containers costs something"
    assert "of kind `kernel`, `network` become a little slower" in cost_of([cheap, dear], can_hook=True)
    assert "every system call of the host" in cost_of([dear], can_hook=False)


def test_the_starter_set_is_without_doubt() -> None:
    assert warnings_of(tuple(starter().values())) == ()
