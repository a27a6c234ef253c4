# SPDX-License-Identifier: Apache-2.0
"""`ps --filter`: docker's words, and what they mean together."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "client"))
from daemon_double import serve

from insula.cli.filters import parse, select
from insula.cli.main import main
from insula.cli.parser import UsageError


def row(name: str, status: str, *, image: str = "host", **labels: str) -> Any:
    return {
        "id": name * 8, "name": name, "status": status, "tenant": "root", "image": "sha256:ab12",
        "spec": {"image": image, "labels": labels}, "created_at": 0.0, "started_at": 0.0,
    }  # fmt: skip


ROWS = [
    row("web1", "running", tier="front"),
    row("web2", "exited", tier="back"),
    row("kv", "running", image="redis:latest"),
]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("name=web", "web1 web2"),
        ("name=web status=running", "web1"),
        ("status=exited status=running", "web1 web2 kv"),
        ("label=tier", "web1 web2"),
        ("label=tier=back", "web2"),
        ("ancestor=redis", "kv"),
        ("ancestor=ab12", "web1 web2 kv"),
        ("id=kvkv", "kv"),
        ("tenant=alice", ""),
    ],
)
def test_filters_of_one_key_are_any_and_of_several_are_all(words: str, names: str) -> None:
    assert [each["name"] for each in select(ROWS, parse(words.split()))] == names.split()


@pytest.mark.parametrize("word", ["web", "nosuch=1", "=x"])
def test_an_unknown_filter_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=f"cannot filter by `{word}`"):
        parse([word])


def test_a_status_means_all_containers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(tmp_path / "s") as double:
        double.answers["GET /v1/containers"] = (200, {}, ROWS)
        assert main(["-H", double.host, "ps", "-f", "status=exited", "--format", "json"]) == 0
        assert double.seen[-1].target == "/v1/containers?all=1"
        assert main(["-H", double.host, "--tenant", "*", "ps"]) == 0
    first, _, rest = capsys.readouterr().out.partition("]\n")
    assert [each["name"] for each in json.loads(first + "]")] == ["web2"]
    assert "TENANT" in rest.splitlines()[0]
