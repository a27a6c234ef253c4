# SPDX-License-Identifier: Apache-2.0
"""Tables literally, at 80 columns; templates; amounts of progress."""

from argparse import Namespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.cli import progress, render
from insula.cli.commands import logs, migrate, ps, stats, top
from insula.cli.parser import UsageError

NOW = 1_800_000_000.0
ROWS: list[Any] = [
    {
        "id": "0123456789abcdef" * 4,
        "name": "web",
        "tenant": "alice",
        "spec": {"image": "debian-python:latest", "command": ["python3", "-m", "http.server", "80"]},
        "config": {},
        "status": "running",
        "created_at": NOW - 7300,
        "started_at": NOW - 7200,
        "ports": [
            {
                "host_address": "0.0.0.0",
                "host_port": 8080,
                "container_port": 80,
                "count": 1,
                "protocol": "tcp",
            }
        ],
    },
    {
        "id": "fedcba9876543210" * 4,
        "name": "evil\x1b[2J",
        "tenant": "bob",
        "spec": {"image": "host", "entrypoint": []},
        "config": {"entrypoint": ["/x"], "command": ["y"]},
        "status": "exited",
        "created_at": NOW - 90,
        "finished_at": NOW - 1,
        "exit_code": 137,
    },
]
TABLE_80 = """\
CONTAINER ID  IMAGE     COMMAND   STATUS          PORTS                 NAMES
0123456789ab  debian-…  "python…  Up 2 hours      0.0.0.0:8080->80/tcp  web
fedcba987654  host      ""        Exited (137) …                        evil?[2J"""


def test_ps_fits_80_columns_and_shows_no_control_characters() -> None:
    lines = render.table(ROWS, ps.columns(now=NOW), width=80)
    assert "\n".join(lines) == TABLE_80
    assert max(map(len, lines)) <= 80


def test_one_column_is_cut_before_another_is_left_out() -> None:
    (heading, *_) = render.table(ROWS[:1], ps.columns(now=NOW), width=110)
    assert "CREATED" in heading
    lines = render.table(ROWS[:1], ps.columns(now=NOW), width=104)
    assert "CREATED" in lines[0] and "0.0.0.0:8080->80/tcp" in lines[1] and "debian-python:latest" in lines[1]


def test_without_a_width_nothing_is_cut() -> None:
    lines = render.table(ROWS, ps.columns(now=NOW), width=None)
    assert lines[1] == (
        '0123456789ab  debian-python:latest  "python3 -m http.serv…  2 hours ago   Up 2 hours'
        "                 0.0.0.0:8080->80/tcp  web"
    )
    assert "Exited (137) 1 second ago" in lines[2]


def test_ports_of_a_range() -> None:
    port = {
        "host_address": "0.0.0.0",
        "host_port": 9000,
        "container_port": 90,
        "count": 10,
        "protocol": "udp",
    }
    assert ps.ports({"ports": [port]}) == "0.0.0.0:9000-9009->90-99/udp"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.ID}} {{.Names}}", "0123456789ab web"),
        ("{{ .Name }}\\t{{.spec.image}}", "web\tdebian-python:latest"),
        (
            "{{json .ports}}",
            '[{"host_address": "0.0.0.0", "host_port": 8080, "container_port": 80, "count": 1, "protocol": "tcp"}]',
        ),
        ("{{.created_at}}", "1799992700.0"),
    ],
)
def test_templates_know_titles_and_fields(template: str, expected: str) -> None:
    assert render.fill(template, ROWS[0], columns=ps.columns()) == expected


def test_an_unknown_field_lists_the_known() -> None:
    with pytest.raises(UsageError, match="no such field") as caught:
        render.fill("{{.Nmae}}", ROWS[0], columns=ps.columns())
    assert caught.value.hint == "ID, Image, Command, Created, Status, Ports, Names"


def test_each_field_that_is_offered_can_be_filled() -> None:
    titles = ("CONTAINER ID", "CPU %", "WAIT CPU / MEM / IO", "FROM START", "NAMES")
    columns = [render.Column(title, lambda row, title=title: title) for title in titles]  # type: ignore[misc]
    with pytest.raises(UsageError) as caught:
        render.fill("{{.Nmae}}", {}, columns=columns)
    names = caught.value.hint.split(", ")
    assert names == ["ID", "Cpu", "WaitCpuMemIo", "FromStart", "Names"]
    assert [render.fill("{{." + name + "}}", {}, columns=columns) for name in names] == list(titles)


def test_quiet_prints_ids_and_a_table_template_has_titles(capsys: pytest.CaptureFixture[str]) -> None:
    render.show(ROWS, ps.columns(), options=Namespace(format="table", quiet=True))
    assert capsys.readouterr().out == "0123456789ab\nfedcba987654\n"
    render.show(ROWS[:1], ps.columns(), options=Namespace(format="table {{.ID}}\\t{{.Names}}", quiet=False))
    assert capsys.readouterr().out == "CONTAINER ID  NAMES\n0123456789ab  web\n"


def test_progress_as_a_line() -> None:
    record = {"phase": "transfer", "done": 50 << 20, "total": 200 << 20, "unit": "bytes", "message": "memory"}
    assert progress.describe(record) == "transfer [#####---------------] 50.0MiB/200MiB memory"
    assert progress.describe({"phase": "build", "done": 3, "total": 4, "unit": "packages"}).endswith(
        "3/4 packages"
    )
    assert progress.describe({}) == "starting"


def test_a_long_phase_in_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    display = progress.Display("build web", is_live=False)
    for phase, done in (("packages", 0), ("packages", 0), ("unpack", 5), ("unpack", 9)):
        display.update({"progress": {"phase": phase, "done": done}})
    assert capsys.readouterr().err == "build web: packages\nbuild web: unpack\n"


def test_a_phase_that_is_all_there_is_is_not_told_beside_its_own_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = progress.Display("undrain", is_live=False)
    for message in ("", "web: freeze", "web: freeze", "db: freeze"):
        display.update({"progress": {"phase": "undrain", "message": message}})
    assert capsys.readouterr().err == "undrain: web: freeze\nundrain: db: freeze\n"
    display = progress.Display("undrain", is_live=True)
    display.update({"progress": {"phase": "undrain"}})
    display.update({"progress": {"phase": "undrain", "message": "web: freeze"}})
    shown = [line.strip() for line in capsys.readouterr().err.split("\r\x1b[K")]
    assert shown == ["", "undrain", "undrain web: freeze"]


def test_progress_in_a_pipe_is_a_line_for_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    display = progress.Display("migrate web", is_live=False)
    for phase, done in (("preflight", 0), ("freeze", 0), ("transfer", 1), ("transfer", 2)):
        display.update({"progress": {"phase": phase, "done": done}})
    assert capsys.readouterr().err == "migrate web: preflight\nmigrate web: freeze\nmigrate web: transfer\n"


def test_a_migration_is_summed_up() -> None:
    result = {"target": "beta", "frozen_ms": 151.4, "moved_bytes": 111_000_000, "seconds": 2.34}
    assert migrate.summary("web", result) == "web: now on beta: frozen 151 ms, moved 111.0 MB, 2.3 s"
    packed = {**result, "raw_bytes": 222_000_000}
    assert migrate.summary("web", packed) == (
        "web: now on beta: frozen 151 ms, moved 111.0 MB (compressed, 222.0 before), 2.3 s"
    )


def test_a_planned_move_says_what_there_is_to_carry() -> None:
    result = {
        "target": "beta", "mode": "auto", "memory_bytes": 50_000_000, "shared_bytes": 1_500_000, "file_bytes": 0,
        "tmpfs_bytes": 3_000_000, "link_bytes_per_s": 1e7, "packed_bytes_per_s": 3e7, "written_bytes_per_s": 0, "tracker": "userfaultfd",
        "pause_ms": 100.0, "max_pause_ms": 300, "verdict": "moves",
    }  # fmt: skip
    assert "link       10 MB/s, 30 MB/s of this memory compressed" in migrate.planned("web", result)
    assert "to carry   memory 50.0, shared 1.5, file 0.0, tmpfs 3.0 MB" in migrate.planned("web", result)


def test_cpu_is_measured_between_two_samples() -> None:
    first = {"cpu_usage_us": 1_000_000, "sampled_at": 10.0}
    assert stats.with_rates(first, None)["cpu_percent"] is None
    assert stats.with_rates({"cpu_usage_us": 1_750_000, "sampled_at": 10.5}, first)["cpu_percent"] == 150.0
    assert top.cpu_time(125.678) == "2:05.68"


def test_moments_and_stamps_of_logs() -> None:
    assert logs.parse_moment("10m", now=1000.0) == "400.0"
    assert logs.parse_moment("1700000000") == "1700000000.0"
    assert logs.parse_moment("2026-01-31T12:00:00Z") == "1769860800.0"
    assert logs.stamp(1769860800.25) == "2026-01-31T12:00:00.250000Z"
    with pytest.raises(UsageError, match="cannot read time"):
        logs.parse_moment("yesterday")


@given(st.floats(1.7e9, 2.2e9))
def test_a_printed_stamp_is_never_later_than_the_line(seconds: float) -> None:
    assert float(logs.parse_moment(logs.stamp(seconds))) <= seconds
