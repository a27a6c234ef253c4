# SPDX-License-Identifier: Apache-2.0
"""Tenants as tables: what is shown of each, and that it fits a terminal of 80 columns."""

from insula.cli.commands import tenant
from insula.cli.render import table
from insula.client.http import Json
from insula.model.quota import KINDS, Resource

GIB = 1 << 30


def row(name: str) -> Json:
    """A tenant with limits of everything, and figures that are as wide as usual."""
    uses = [
        {"resource": each, "unit": KINDS[each].unit, "used": GIB - (1 << 20), "limit": 512 * GIB}
        for each in (Resource.MEMORY, Resource.DISK, Resource.IMAGES)
    ]
    uses += [
        {"resource": each, "unit": KINDS[each].unit, "used": 112, "limit": 1_398_101}
        for each in (Resource.CONTAINERS, Resource.PIDS)
    ]
    return {"name": name, "uid_base": 536870912, "created_at": 1.0, "uses": uses}


def test_a_list_of_tenants_fits_80_columns() -> None:
    lines = table([row("alice"), row("a-tenant-with-quite-a-long-name")], tenant.COLUMNS, width=80)
    assert max(map(len, lines)) <= 80, lines
    assert lines[0].split()[:2] == ["NAME", "CONTAINERS"]


def test_a_wide_terminal_shows_all() -> None:
    [heading, line] = table([row("alice")], tenant.COLUMNS, width=None)
    assert "FIRST UID" in heading and "IMAGES" in heading
    assert "536870912" in line


def test_limits_of_each_are_told_from_those_of_all() -> None:
    uses: list[Json] = [
        {"resource": "log", "used": 3 << 20, "limit": 1 << 20},
        {"resource": "memory", "used": 3 << 20, "limit": 8 << 20},
        {"resource": "cpus", "used": 1250, "limit": None},
    ]
    lines = table(uses, tenant.USE_COLUMNS, width=80)
    assert [line.split()[:4] for line in lines[1:]] == [
        ["log", "3.0MiB", "1.0MiB", "each"],
        ["memory", "3.0MiB", "8.0MiB", "default"],
        ["cpus", "1.25", "none", "default"],
    ]
