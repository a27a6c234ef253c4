# SPDX-License-Identifier: Apache-2.0
"""Networks of a real host: ports, names, what reaches what.  Two people, each with networks of their own."""

import socket

import pytest

from hosted import Host, Person, wait_until

SERVE = "while :; do echo -n hello-from-$NAME | nc -l -p {port}; done"
FETCH = "nc -w 30 {address} {port} < /dev/null"


def serve(person: Person, name: str, *words: str, port: int = 80) -> str:
    """Run a container that answers each connection with its name; returns its address."""
    person(
        "run", "-d", "--name", name, "-e", f"NAME={name}", *words, "box", "sh", "-c", SERVE.format(port=port)
    )
    probe = f"netstat -ltn | grep -q :{port}"
    wait_until(lambda: person.give("exec", name, "sh", "-c", probe).code == 0, what=f"{name} listens")
    return str(person.look(name)["attachment"]["address"])


def read_tcp(host: Host, address: str, port: int) -> str:
    with host.connect(address, port) as connection:
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_a_published_port_leads_to_its_container_until_it_ends(host: Host, alice: Person) -> None:
    serve(alice, "web", "-p", "18080:80")
    assert read_tcp(host, "127.0.0.1", 18080) == "hello-from-web"
    assert alice("ps", "--format", "{{.Ports}}") == "0.0.0.0:18080->80/tcp"
    alice("stop", "-t", "0", "web")
    with pytest.raises(OSError, match="refused"):
        host.connect("127.0.0.1", 18080)
    alice("start", "web")
    wait_until(
        lambda: alice.give("exec", "web", "sh", "-c", "netstat -ltn | grep -q :80").code == 0, what="up"
    )
    assert read_tcp(host, "127.0.0.1", 18080) == "hello-from-web"


def test_a_range_and_a_port_that_is_chosen(host: Host, alice: Person) -> None:
    serve(alice, "web", "-p", "18100-18102:80-82", "-p", "81", port=81)
    assert read_tcp(host, "127.0.0.1", 18101) == "hello-from-web"
    ports = {each["container_port"]: each for each in alice.look("web")["ports"]}
    assert ports[80]["count"] == 3
    assert ports[81]["host_port"] > 0
    wait_until(
        lambda: alice.give("exec", "web", "sh", "-c", "netstat -ltn | grep -q :81").code == 0, what="again"
    )
    assert read_tcp(host, "127.0.0.1", ports[81]["host_port"]) == "hello-from-web"


def test_udp_goes_both_ways(host: Host, alice: Person) -> None:
    program = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 53)); print('ready', flush=True)\n"
        "while True:\n data, peer = s.recvfrom(100); s.sendto(data[::-1], peer)"
    )
    alice("run", "-d", "--name", "u", "-p", "18053:53/udp", "host", "python3", "-c", program)
    wait_until(lambda: "ready" in alice("logs", "u"), what="it listens")
    for word in (b"ping", b"pong"):
        with host.connect("127.0.0.1", 18053, kind=socket.SOCK_DGRAM) as connection:
            connection.send(word)
            assert connection.recv(100) == word[::-1]


def test_a_port_in_use_names_its_holder(host: Host, alice: Person, bob: Person) -> None:
    alice("run", "-d", "--name", "first", "-p", "18080:80", "box", "sleep", "1000")
    said = alice.fails("run", "-d", "--name", "second", "-p", "18080:80", "box", "sleep", "1000", code=125)
    assert "18080" in said and "`first`" in said
    said = bob.fails("run", "--rm", "-p", "18080:80", "box", "true", code=125)
    assert "18080" in said
    assert "a program of this host listens" in said and "`first`" not in said
    with host.entered():
        blocker = socket.create_server(("0.0.0.0", 18081))
    with blocker:
        assert "18081" in alice.fails("run", "--rm", "-p", "18081:80", "box", "true", code=125)
    assert alice("run", "--rm", "-p", "18081:80", "box", "echo", "free") == "free"
    assert bob("ps", "-aq") == ""


def test_containers_of_one_network_know_each_other_by_name(alice: Person) -> None:
    alice("network", "create", "shop")
    address = serve(alice, "web", "--network", "shop", "--hostname", "front")
    words = ("run", "--rm", "--network", "shop", "box")
    assert alice(*words, "sh", "-c", FETCH.format(address="web", port=80)) == "hello-from-web"
    for name in ("web", "front", alice.look("web")["id"][:12]):
        assert address in alice(*words, "nslookup", name), name
    alice("rename", "web", "door")
    assert address in alice(*words, "nslookup", "door")
    assert alice.give(*words, "nslookup", "web").code != 0
    alice("stop", "-t", "0", "door")
    assert alice.give(*words, "nslookup", "door").code != 0


def test_names_and_traffic_end_at_a_networks_border(alice: Person) -> None:
    address = serve(alice, "web")
    alice("network", "create", "other")
    words = ("run", "--rm", "--network", "other", "box")
    assert alice.give(*words, "nslookup", "web").code != 0
    assert alice("run", "--rm", "box", "sh", "-c", FETCH.format(address=address, port=80)) == "hello-from-web"


def test_two_people_do_not_reach_each_other(alice: Person, bob: Person) -> None:
    address = serve(alice, "web")
    for words in (
        ("nc", "-w", "1", address, "80"),
        ("ping", "-c", "1", "-W", "1", address),
        ("nslookup", "web"),
    ):
        assert bob.give("run", "--rm", "box", *words).code != 0, words
    gateway = alice.look("web")["attachment"]["gateway"]
    assert bob.give("run", "--rm", "box", "ping", "-c", "1", "-W", "1", gateway).code != 0


def test_nobody_takes_anothers_address(alice: Person) -> None:
    address = serve(alice, "web")
    script = f"ip addr add {address}/16 dev eth0; ping -c 1 -W 1 -I {address} 10.213.0.1"
    assert alice.give("run", "--rm", "box", "sh", "-c", script).code != 0


def test_without_a_network_there_is_only_loopback(alice: Person) -> None:
    out = alice("run", "--rm", "--network", "none", "box", "sh", "-c", "ls /sys/class/net; ip -o addr")
    assert "eth0" not in out
    assert "127.0.0.1" in out


def test_an_address_stays_with_its_container(alice: Person) -> None:
    alice("create", "--name", "c", "box", "sleep", "1000")
    first = alice.look("c")["attachment"]
    for _ in range(2):
        alice("start", "c")
        seen = alice("exec", "c", "sh", "-c", "ip -o -4 addr show eth0; cat /sys/class/net/eth0/address")
        assert f"{first['address']}/" in seen and first["mac"] in seen
        alice("stop", "-t", "0", "c")


def test_an_exhausted_subnet_refuses_and_leaves_nothing(host: Host, alice: Person) -> None:
    alice("network", "create", "tiny", "--subnet", "10.213.200.0/29")
    made = 0
    while (done := alice.give("create", "--network", "tiny", "box", "true")).code == 0:
        made += 1
        assert made < 8
    assert made == 5
    assert done.code == 125 and "10.213.200.0/29" in done.err
    status, body = host.root.ask("POST", f"/v1/containers?tenant={alice.tenant}",
                                 body=b'{"image": "box", "command": ["true"], "network": "tiny"}')  # fmt: skip
    assert (status, body["error"]["code"]) == (507, "address_pool_exhausted")
    assert len(alice("ps", "-aq").split()) == 5
    alice("rm", alice("ps", "-aq").split()[0])
    alice("create", "--network", "tiny", "box", "true")


def test_services_of_the_host_are_not_for_containers(host: Host, alice: Person) -> None:
    with host.entered():
        server = socket.create_server(("0.0.0.0", 18999))
    with server:
        gateway = alice.json("network", "inspect", "default")[0]["gateway"]
        done = alice.give("run", "--rm", "box", "nc", "-w", "1", gateway, "18999")
        assert done.code != 0, done
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
