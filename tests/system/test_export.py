# SPDX-License-Identifier: Apache-2.0
"""Events and traces at a real collector: a move is one trace across both hosts; a dead or slow one holds up nobody."""

from collections.abc import Iterator

import pytest

from collector import Collector, SeenLog, SeenSpan, collecting
from insula.client.operations import follow
from insula.model.errors import NameTaken
from insula.model.migration import Phase
from two_hosts import COUNTING, SERVER, Pair, wait_until

CLIENT_ADDRESS = "10.99.0.250"
SOURCE_PHASES = [each.value for each in Phase if each is not Phase.PULL]
TARGET_PHASES = ["reserve", "precopy", "transfer", "restore", "commit", "resume", "cleanup"]


def export(pair: Pair, endpoint: str, *, kinds: str = '"exec", "exit"') -> None:
    """Have both hosts export to an endpoint."""
    for name in pair.world.hosts:
        text = f'[[otlp]]\nendpoint = "{endpoint}"\nheaders = {{ x-key = "k" }}\nkinds = [{kinds}]\ntimeout_s = 5\n'
        (pair.host(name).folder / "export.toml").write_text(text)
        pair.restart(name)


@pytest.fixture
def collector(pair: Pair) -> Iterator[Collector]:
    with collecting(CLIENT_ADDRESS, namespace=pair.world.outside) as found:
        export(pair, found.endpoint)
        yield found


def children(spans: list[SeenSpan], parent: SeenSpan) -> list[SeenSpan]:
    return sorted((each for each in spans if each.parent == parent.id), key=lambda each: each.begun)


def test_a_move_is_one_trace_across_both_hosts(pair: Pair, collector: Collector) -> None:
    pair.run("c")
    pair.migrate("c", "alpha", "beta")
    assert wait_until(lambda: bool(collector.named("migrate") and collector.named("receive")))
    (source,), (target,) = collector.named("migrate"), collector.named("receive")
    trace = [each for each in collector.spans if each.trace == source.trace]
    assert (source.host, target.host) == ("alpha", "beta")
    assert (source.parent, target.parent, target.trace) == ("", source.id, source.trace)
    at_source, at_target = (
        [each for each in children(trace, whole) if each.id != target.id] for whole in (source, target)
    )
    assert [each.name for each in at_source] == SOURCE_PHASES
    assert [each.name for each in at_target] == TARGET_PHASES
    assert len(trace) == 2 + len(SOURCE_PHASES) + len(TARGET_PHASES)
    by_id = {each.id: each for each in trace}
    for each in trace:
        assert each.ended > each.begun, each
        if each.parent:
            assert by_id[each.parent].begun <= each.begun, each
            assert each.ended <= by_id[each.parent].ended, each
    assert source.attributes["container.name"] == target.attributes["container.name"] == "c"
    assert source.attributes["insula.target"] == "beta"
    assert source.attributes["insula.frozen_ms"] > 0
    assert {each.get("x-key") for each in collector.headers} == {"k"}


def test_what_fails_is_told_so(pair: Pair, collector: Collector) -> None:
    pair.run("c")
    pair.run("c", host="beta")
    with pytest.raises(NameTaken):
        pair.migrate("c", "alpha", "beta")
    assert wait_until(lambda: bool(collector.named("migrate") and collector.named("receive")))
    (source,), (target,) = collector.named("migrate"), collector.named("receive")
    assert source.is_error and target.is_error
    assert source.attributes["error.type"] == NameTaken.code


def test_a_drain_is_one_trace_of_moves(pair: Pair, collector: Collector) -> None:
    pair.run("c")
    client = pair.client("alpha")
    *_, last = follow(client, client.call("POST", "/v1/host/drain", body={}))
    assert last["status"] == "done"
    assert wait_until(lambda: bool(collector.named("drain") and collector.named("receive")))
    (drain,) = (each for each in collector.named("drain") if not each.parent)
    (move,), (target,) = collector.named("migrate"), collector.named("receive")
    assert (move.parent, target.parent) == (drain.id, move.id)
    assert move.attributes["container.name"] == "c"
    *_, last = follow(client, client.call("POST", "/v1/host/undrain", body={}))
    assert last["status"] == "done"
    assert wait_until(
        lambda: (
            bool(collector.named("undrain"))
            and len(collector.named("receive")) == len(collector.named("migrate")) == 2
        )
    )
    (undrain,) = (each for each in collector.named("undrain") if not each.parent)
    (recall,) = collector.named("recall")
    back, again = collector.named("migrate")[1], collector.named("receive")[1]
    assert (recall.parent, back.parent, again.parent) == (undrain.id, recall.id, back.id)
    assert (recall.host, back.host, again.host) == ("alpha", "beta", "alpha")


def programs_of(collector: Collector) -> list[SeenLog]:
    """Return the starts of programs that were given by `-c`."""
    execs = [each for each in list(collector.logs) if each.name == "insula.exec"]
    return [each for each in execs if each.attributes["process.command_args"][1:2] == ["-c"]]


def test_events_are_logs(pair: Pair, collector: Collector) -> None:
    pair.run("c")
    assert wait_until(lambda: len(programs_of(collector)) == 1)
    pair.client("alpha").call("POST", "/v1/containers/c/kill", body={"signal": "KILL"})
    assert wait_until(lambda: "insula.exited" in {each.name for each in list(collector.logs)})
    (created,) = (each for each in collector.logs if each.name == "insula.created")
    found = pair.find("alpha", "c")
    assert found is not None
    whose = {
        "container.id": found["id"],
        "container.name": "c",
        "insula.tenant": "root",
        "host.name": "alpha",
    }
    assert created.resource.items() >= whose.items()
    assert created.resource["service.name"] == "insulad"
    (started,) = programs_of(collector)
    assert started.attributes["insula.kind"] == "exec"
    assert started.attributes["process.command_args"][1] == "-c"
    assert started.attributes["insula.user"] == 0
    assert started.resource == created.resource
    (ended,) = (each for each in collector.logs if each.name == "insula.exited")
    assert ended.attributes["insula.detail"] == "exit code 137"
    assert created.at < started.at < ended.at


def test_requests_are_traces_and_go_on_with_their_callers(pair: Pair, collector: Collector) -> None:
    pair.run("c")
    assert wait_until(lambda: bool(collector.named("create") and collector.named("start")))
    (created,) = collector.named("create")
    assert (created.parent, created.kind) == ("", 2)
    assert created.attributes["http.route"] == "/v1/containers"
    assert created.attributes["insula.tenant"] == "root"
    (started,) = collector.named("start")
    assert [each.name for each in children(collector.spans, started)] == ["network", "groups", "spawn"]
    assert started.attributes["container.name"] == "c"


def test_events_go_on_across_a_move_without_a_hole(pair: Pair, collector: Collector) -> None:
    export(pair, collector.endpoint, kinds='"file"')
    pair.run("c", program=COUNTING + SERVER)

    def numbers(host: str) -> list[int]:
        return [
            int(each.attributes["insula.path"].rsplit("/", 1)[1])
            for each in list(collector.logs)
            if each.resource["host.name"] == host
            and "/insula-none/" in each.attributes.get("insula.path", "")
        ]

    assert wait_until(lambda: len(numbers("alpha")) > 100)
    pair.migrate("c", "alpha", "beta")
    assert wait_until(lambda: len(numbers("beta")) > 100)

    def has_all() -> bool:
        seen = numbers("alpha") + numbers("beta")
        return seen == list(range(len(seen)))

    assert wait_until(has_all), (
        numbers("alpha")[-5:],
        numbers("beta")[:5],
    )  # alpha's last ones may come later
    assert "insula.lost" not in {each.name for each in collector.logs}


@pytest.mark.parametrize("is_slow", [True, False])
def test_a_collector_that_is_slow_or_down_holds_up_nobody(pair: Pair, is_slow: bool) -> None:
    with collecting(CLIENT_ADDRESS, namespace=pair.world.outside) as collector:
        collector.may_answer.clear()
        collector.status = 200 if is_slow else 503
        if not is_slow:
            collector.may_answer.set()
        export(pair, collector.endpoint)
        pair.run("c")
        pair.migrate("c", "alpha", "beta")
        pair.migrate("c", "beta", "alpha")
        assert wait_until(lambda: bool(collector.headers))
        assert not collector.spans
        waiting = _figures(pair)
        assert waiting[f'insula_export_waiting{{sink="otlp {collector.endpoint} traces"}}'] > 0
        assert waiting[f'insula_export_sent_total{{sink="otlp {collector.endpoint} traces"}}'] == 0
        collector.status = 200
        collector.may_answer.set()
        assert wait_until(lambda: len(collector.named("migrate")) == 2)


def _figures(pair: Pair) -> dict[str, float]:
    with pair.client("alpha").open("GET", "/metrics") as answer:
        text = b"\n".join(answer.lines()).decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("insula_export")
    }
