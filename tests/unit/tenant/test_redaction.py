# SPDX-License-Identifier: Apache-2.0
"""What of arguments and paths is told."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from insula.model.change import Alarm, Change
from insula.model.errors import InvalidPolicy
from insula.model.grant import EVERY_TENANT
from insula.model.monitor import Event, EventKind
from insula.model.profile import Profile
from insula.model.record import (
    ContainerRecord,
    ErrorBody,
    ImageConfig,
    ImageRecord,
    OperationRecord,
    OperationStatus,
    Progress,
)
from insula.model.spec import AppliedProfile, MountKind, MountWish, Spec
from insula.tenant.policy import EXPORT, Reader, Rules, parse, redaction
from insula.tenant.redaction import Redaction
from records import container_record

SECRET = Redaction(
    arguments=("password=*", "--token=*", "--key *", "[sS]esame"), paths=("/srv/secret", "/home")
)


def event(**fields: object) -> Event:
    return Event(**{"at": 1.0, "container": "c1", "name": "web", "kind": EventKind.EXEC} | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("mysql", "password=x", "db"), ("mysql", "password=[hidden]", "db")),
        (("curl", "--token=abc"), ("curl", "--token=[hidden]")),
        (("login", "--key", "abc", "web"), ("login", "--key", "[hidden]", "web")),
        (("login", "--key"), ("login", "--key")),
        (("open", "Sesame", "sesame seeds"), ("open", "[hidden]", "sesame seeds")),
        (("cat", "/srv/secret/a"), ("cat", "[hidden]")),
        (("cat", "--file=/srv//secret/./a"), ("cat", "[hidden]")),
        (("cat", "/srv/x/../secret/a"), ("cat", "[hidden]")),
        (("sh", "-c", "cat </srv/secret/a"), ("sh", "-c", "[hidden]")),
        (("ls", "/srv/secret", "/srv/secrets/a"), ("ls", "/srv/secret", "/srv/secrets/a")),
        ((), ()),
    ],
)
def test_arguments(given: tuple[str, ...], told: tuple[str, ...]) -> None:
    assert SECRET.event(event(arguments=given)).arguments == told


NO_CONFIG = ImageConfig()


def container(*, config: ImageConfig = NO_CONFIG, error: str = "", **spec: Any) -> ContainerRecord:
    """Return a container of that specification, held to the profile that stands in it."""
    whole = Spec(image="box", **spec)
    return container_record(spec=whole, config=config, error=error, profile=whole.profile)


@pytest.mark.parametrize(
    ("entrypoint", "command", "told"),
    [
        (None, ("password=x", "/srv/secret/a", "b"), (None, ("password=[hidden]", "[hidden]", "b"))),
        (("login", "--key"), ("abc",), (("login", "--key"), ("[hidden]",))),
        ((), ("login", "--key", "abc"), ((), ("login", "--key", "[hidden]"))),
    ],
)
def test_the_command_of_a_container(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...], told: tuple[object, object]
) -> None:
    seen = SECRET.record(container(entrypoint=entrypoint, command=command)).spec
    assert (seen.entrypoint, seen.command) == told


def test_the_command_of_a_containers_image() -> None:
    config = ImageConfig(
        entrypoint=("login", "--key"),
        command=("abc", "password=x"),
        environment=("A=1", "password=x"),
        volumes=("/home/a",),
    )
    seen = SECRET.record(container(config=config)).config
    assert seen.command == ("[hidden]", "password=[hidden]")
    assert seen.environment == ("A=1", "password=[hidden]")
    assert seen.volumes == ("/home/[hidden]",)
    assert SECRET.record(container(config=config, command=("def",))).spec.command == ("[hidden]",)


def test_the_environment_and_the_folders_of_a_container() -> None:
    mounts = (
        MountWish(kind=MountKind.BIND, source="/srv/secret/a", target="/data"),
        MountWish(kind=MountKind.VOLUME, source="secret", target="/home/alice"),
    )
    environment = ("password=x", "DATA=/srv/secret/a", "LANG=C", "--key", "plain")
    given = container(
        environment=environment,
        mounts=mounts,
        working_directory="/home/alice",
        error="cannot execute `/srv/secret/run`: no such file",
    )
    seen = SECRET.record(given)
    assert seen.spec.environment == ("password=[hidden]", "[hidden]", "LANG=C", "--key", "plain")
    assert [(each.source, each.target) for each in seen.spec.mounts] == [
        ("/srv/secret/[hidden]", "/data"),
        ("secret", "/home/[hidden]"),
    ]
    assert seen.spec.working_directory == "/home/[hidden]"
    assert seen.error == "cannot execute `/srv/secret/[hidden]`: no such file"
    assert Redaction().record(given) is given


def test_what_a_container_is_held_to() -> None:
    held = AppliedProfile(
        name="p",
        calls=("read",),
        capabilities=None,
        programs=("/bin/sh", "/srv/secret/a"),
        written=("/home/a", "/home/b", "/tmp"),
        outgoing=("unix:/srv/secret/s", "10.0.0.1:80"),
        refused_folders=("/home/c",),
    )
    seen = SECRET.record(container(profile=held))
    assert seen.profile == seen.spec.profile
    assert seen.profile is not None
    assert seen.profile.programs == ("/bin/sh", "/srv/secret/[hidden]")
    assert seen.profile.written == ("/home/[hidden]", "/tmp")
    assert seen.profile.outgoing == ("unix:/srv/secret/[hidden]", "10.0.0.1:80")
    assert seen.profile.refused_folders == ("/home/[hidden]",)
    nothing = AppliedProfile(name="p", calls=(), capabilities=None)
    assert SECRET.applied(nothing) == nothing


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("/srv/secret/a/b", "/srv/secret/[hidden]"),
        ("//srv/secret/a", "/srv/secret/[hidden]"),
        ("/srv/x/../secret/a", "/srv/secret/[hidden]"),
        ("/srv/secret", "/srv/secret"),
        ("/srv/secrets", "/srv/secrets"),
        ("secret/a", "[hidden]"),
        ("", ""),
    ],
)
def test_paths(given: str, told: str) -> None:
    seen = SECRET.event(event(path=given, other_path=given, address=f"unix:{given}"))
    assert (seen.path, seen.other_path, seen.address) == (told, told, f"unix:{told}")


def test_other_addresses_are_told() -> None:
    for address in ("192.0.2.1:80", "unix:@abstract", ""):
        assert SECRET.event(event(address=address)).address == address


def test_whole_command_lines_can_be_hidden() -> None:
    seen = Redaction(arguments=("*",)).event(event(arguments=("a", "b=c"), path="x"))
    assert (seen.arguments, seen.path) == (("[hidden]", "[hidden]"), "x")


def test_an_alarm_has_the_words_of_what_may_be_told() -> None:
    seen = event(command="sh", pid=7, arguments=("sh", "password=x"))
    alarm = Alarm(at=1.0, container="c1", name="web", tenant="alice", event="alarm", rule="shell", seen=seen)
    told = SECRET.change(alarm)
    assert told.detail == "shell: sh[7] exec sh password=[hidden]"
    assert "=x" not in str(told)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cannot execute `/srv/secret/tool`: not found", "cannot execute `/srv/secret/[hidden]`: not found"),
        ("cannot execute `/srv/secret/[hidden]`: no", "cannot execute `/srv/secret/[hidden]`: no"),
        ("cannot execute `sh -c /srv/secret/x`: no", "cannot execute `[hidden]`: no"),
        ("cannot open `/srv/secret/`x`: no", "[hidden]"),
        ("cannot open `/srv/secret/a`b /home/c`: no", "[hidden]"),
        ("criu: can't open /home/ann/file", "[hidden]"),
        ("/srv/secret/[hidden]/x", "[hidden]"),
        ("cannot mount `/srv/secret` on `/mnt`", "cannot mount `/srv/secret` on `/mnt`"),
        ("exit code 127: cannot execute `password=x`", "exit code 127: cannot execute `password=[hidden]`"),
        ("usage: login --key abc web", "usage: login --key [hidden] web"),
        ("Sesame", "Sesame"),
        ("", ""),
    ],
)
def test_messages(given: str, told: str) -> None:
    assert SECRET.text(given) == told
    assert SECRET.text(told) == told


def test_a_message_is_told_where_any_argument_is_hidden() -> None:
    assert Redaction(arguments=("*", "?")).text("cannot find `web`") == "cannot find `web`"


def test_the_end_of_a_container_is_told_without_what_is_hidden() -> None:
    ended = Change(
        at=1.0, container="c1", name="web", tenant="t", event="exited", detail="exit code 1: `/home/a`"
    )
    assert SECRET.change(ended).detail == "exit code 1: `/home/[hidden]`"


def test_the_programs_of_a_profile() -> None:
    profile = Profile(
        name="p",
        calls={},
        capabilities={},
        programs={"/bin/sh": 1, "/home/a": 1, "/home/b": 2},
        written={},
        outgoing={},
        listening={},
        refused_programs={"/srv/secret/x": 1},
    )
    told = SECRET.profile(profile)
    assert told.programs == {"/bin/sh": 1, "/home/[hidden]": 3}
    assert told.refused_programs == {"/srv/secret/[hidden]": 1}
    assert told.is_redacted


def test_an_operation() -> None:
    failed = OperationRecord(
        id="1",
        kind="checkpoint",
        tenant="t",
        subject="web",
        status=OperationStatus.FAILED,
        progress=Progress(message="cannot dump `/home/a`"),
        result={"file": "/srv/secret/x", "bytes": 1},
        error=ErrorBody(code="internal", message="cannot dump `/home/a`", hint="remove `/home/a`"),
    )
    told = SECRET.operation(failed)
    assert told.error == ErrorBody(
        code="internal", message="cannot dump `/home/[hidden]`", hint="remove `/home/[hidden]`"
    )
    assert told.progress.message == "cannot dump `/home/[hidden]`"
    assert told.result == {"file": "[hidden]", "bytes": 1}


def test_an_image() -> None:
    config = ImageConfig(entrypoint=("login", "--key"), command=("abc",), environment=("password=x",))
    told = SECRET.image(ImageRecord(id="i", config=config)).config
    assert (told.entrypoint, told.command, told.environment) == (
        ("login", "--key"),
        ("[hidden]",),
        ("password=[hidden]",),
    )


def test_a_profile_counts_what_is_hidden_together() -> None:
    profile = Profile(
        name="p",
        calls={},
        capabilities={},
        written={"/srv/secret/a": 1, "/srv/secret/b": 2, "/tmp": 1},
        outgoing={},
        listening={},
    )
    told = SECRET.profile(profile)
    assert told.written == {"/srv/secret/[hidden]": 3, "/tmp": 1}
    assert told.is_redacted
    assert not Redaction(paths=("/nothing",)).profile(profile).is_redacted


@given(st.text("/.ab", max_size=12))
@example("/a.//b")
@example("//./a/b")
def test_nothing_below_a_hidden_folder_is_told(path: str) -> None:
    told = Redaction(paths=("/a",)).path(path)
    assert told in (path, "/a/[hidden]", "[hidden]")
    names = [each for each in path.split("/") if each not in ("", ".")]
    if told == path and ".." not in names:
        assert names[:1] != ["a"] or len(names) == 1


POLICY = """
[default]
hide_arguments = ["password=*"]
[tenant.web]
hide_paths = ["/srv"]
hide_arguments = ["token=*"]
[role.operator]
hide_arguments = ["*"]
[role.export]
hide_paths = ["/home"]
[user.ann]
hide_arguments = []
[group.staff]
hide_arguments = ["a"]
[group.more]
hide_arguments = ["b"]
"""


@pytest.mark.parametrize(
    ("reader", "tenant", "arguments", "paths"),
    [
        (Reader(role="user", name="bob"), "bob", ("password=*",), ()),
        (Reader(role="user", name="bob"), "web", ("token=*",), ("/srv",)),
        (Reader(role="operator", name="bob"), "web", ("*",), ("/srv",)),
        (Reader(role="operator", name="ann"), "web", (), ("/srv",)),
        (Reader(role="user", groups=frozenset({"staff", "more"})), "web", ("a", "b"), ("/srv",)),
        (Reader(role=EXPORT), "web", ("token=*",), ("/home",)),
    ],
)
def test_the_most_particular_section_counts(
    reader: Reader, tenant: str, arguments: tuple[str, ...], paths: tuple[str, ...]
) -> None:
    found = redaction(parse(POLICY, known_capabilities=frozenset()), reader, tenant=tenant)
    assert (found.arguments, found.paths) == (arguments, paths)


def test_what_is_of_no_tenant_is_hidden_as_of_any() -> None:
    text = """
        [default]
        hide_paths = ["/a"]
        [tenant.web]
        hide_paths = ["/b"]
        [tenant.db]
        hide_paths = []
    """
    rules = parse(text, known_capabilities=frozenset())
    assert redaction(rules, Reader(role="admin"), tenant=EVERY_TENANT).paths == ("/a", "/b")


def test_nothing_is_hidden_that_nobody_hides() -> None:
    assert redaction(Rules(), Reader(role="viewer"), tenant="web").is_empty


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[role.boss]\nhide_arguments = ["*"]', "role.boss: `boss` cannot be the name of a role (line 1)"),
        (
            '[role.admin]\nbinds = ["~"]',
            "role.admin.binds: a role has `hide_arguments` and `hide_paths` only",
        ),
        ('[default]\nhide_paths = ["srv"]', "default.hide_paths: `srv` is no absolute path"),
        ('[default]\nhide_paths = ["/srv/"]', "`/srv/` is no absolute path in its shortest form (line 2)"),
        ('[user.ann]\nhide_arguments = ["--key value"]', "`--key value` is no pattern of one argument"),
        ('[user.ann]\nhide_arguments = [""]', "`` is no pattern of one argument"),
        ("[user.ann]\nhide_arguments = [1]", "user.ann.hide_arguments: expected `str`, got `int` (line 2)"),
    ],
)
def test_what_is_wrong_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        parse(text, known_capabilities=frozenset())
    assert reason in caught.value.message
