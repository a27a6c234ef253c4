# SPDX-License-Identifier: Apache-2.0
"""The policy file: read strictly, with line and reason; the most particular section counts."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.kernel import caps
from insula.model.errors import InvalidPolicy
from insula.model.permit import DEFAULT_CAPABILITIES, Permit
from insula.tenant.policy import Asker, Rules, parse, permit

EXAMPLE = """\
[default]
binds = ["~", "/srv/data"]

[tenant.web]
low_ports = [80, 443]
subnets = ["192.168.7.0/24"]

[group.staff]
uplinks = ["eth1"]
capabilities = ["CHOWN"]

[group.net]
capabilities = ["NET_ADMIN"]
low_ports = []

[user.alice]
binds = []
"""


def read(text: str) -> Rules:
    return parse(text, known_capabilities=caps.ALL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[default\n", "line 1"),
        ('[default]\nbinds = ["~"]\nbind = []\n', r"default\.bind: .*unknown field `bind`.* \(line 3\)"),
        ('[defaults]\nbinds = ["~"]\n', r"defaults: neither .* \(line 1\)"),
        ("\n[user.alice]\nlow_ports = true\n", r"user.*low_ports: expected `array.* \(line 3\)"),
        ('[user.alice]\nlow_ports = ["80"]\n', r"low_ports: expected `int`.* \(line 2\)"),
        (
            "[user.alice]\nlow_ports = [80, 1024]\n",
            r"user\.alice\.low_ports: 1024 is not between.* \(line 2\)",
        ),
        ("[user.alice]\nlow_ports = [0]\n", "0 is not between"),
        ('[user.alice]\ndevices = ["/etc/shadow"]\n', "`/etc/shadow` is not a path below /dev"),
        ('[user.alice]\ndevices = ["/dev/../etc/shadow"]\n', "is not a path below /dev"),
        ("[default]\nlow_ports = [true]\n", "expected `int`"),
        ('[default]\ncapabilities = ["SYS_MAGIC"]\n', r"there is no capability `SYS_MAGIC` \(line 2\)"),
        ('[default]\ncapabilities = ["CAP_CHOWN"]\n', "there is no capability"),
        ('[default]\nbinds = ["data"]\n', "neither `~` nor an absolute path"),
        ('[default]\nbinds = ["/srv/../etc"]\n', "neither `~` nor an absolute path"),
        ('[default]\nuplinks = ["a/b"]\n', "cannot be an interface"),
        (
            '[default]\nsubnets = ["10.1.2.3/8"]\n',
            r"default\.subnets: .*10.1.2.3/8 has host bits.* \(line 2\)",
        ),
        ('[default]\nsubnets = ["lan"]\n', "subnets: cannot be a subnet: 'lan'"),
        ('[tenant."../x"]\nbinds = []\n', "cannot be the name of a tenant"),
        ("[group.staff]\nprivileged = true\n", "unknown field `privileged`"),
        ("[default]\nprivileged = true\n", "unknown field `privileged`"),
        ("[default]\nbinds = []\nbinds = []\n", "overwrite"),
        ("binds = []\n", r"binds: neither .* \(line 1\)"),
        ("user = 3\n", "user: neither"),
    ],
)
def test_a_wrong_policy_is_refused_with_line_and_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidPolicy, match=said):
        read(text)


@given(st.text(alphabet=string.printable, max_size=200))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        assert isinstance(read(text), Rules)
    except InvalidPolicy as error:
        assert error.message.startswith("cannot ")


def of(name: str = "", *, tenant: str = "none", groups: tuple[str, ...] = ()) -> Permit:
    return permit(read(EXAMPLE), Asker(tenant=tenant, name=name, groups=frozenset(groups)))


def test_an_empty_policy_gives_everybody_the_usual() -> None:
    assert permit(read(""), Asker(tenant="x")) == Permit()


def test_the_most_particular_section_that_has_a_key_counts() -> None:
    assert of().binds == ("/srv/data", "~")
    assert of("alice").binds == ()
    assert of("alice").capabilities == DEFAULT_CAPABILITIES
    assert of(tenant="web").low_ports == {80, 443}
    assert of(tenant="web", groups=("net",)).low_ports == frozenset()
    assert of(groups=("staff",)).uplinks == {"eth1"}
    assert of(tenant="web").subnets == {"192.168.7.0/24"}


def test_several_groups_give_what_any_of_them_gives() -> None:
    assert of(groups=("net", "staff", "else")).capabilities == {"CHOWN", "NET_ADMIN"}


def test_nobody_gets_everything_by_a_policy() -> None:
    assert not any(
        of(name, tenant="web", groups=("net", "staff")).is_everything for name in ("", "alice", "root")
    )
