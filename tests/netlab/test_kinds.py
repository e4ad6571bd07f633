"""Every kind of site is what it claims, in the kernel and in userspace, by plain sockets."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from . import kinds
from .behaviour import Server
from .kinds import SiteKind
from .policies import Dependence, NatPolicy, Ports
from .probe import ask, start_echo
from .routers import Engine

if TYPE_CHECKING:
    from .lab import Lab

_EI, _AD, _APD = Dependence

_TRANSLATED = [
    (kinds.FULL_CONE, _EI, _EI, Ports.PRESERVE),
    (kinds.ADDRESS_RESTRICTED, _EI, _AD, Ports.PRESERVE),
    (kinds.PORT_RESTRICTED, _EI, _APD, Ports.PRESERVE),
    (kinds.SYMMETRIC_SEQUENTIAL, _APD, _APD, Ports.SEQUENTIAL),
    (kinds.SYMMETRIC_RANDOM, _APD, _APD, Ports.RANDOM),
    (kinds.CGNAT_PORT_RESTRICTED, _EI, _APD, Ports.RANDOM),
    (kinds.CGNAT_SYMMETRIC, _APD, _APD, Ports.RANDOM),
]

_UNTRANSLATED = [
    (kinds.PUBLIC, 4, _EI),
    (kinds.PUBLIC, 6, _EI),
    (kinds.V4_ONLY, 4, _EI),
    (kinds.V6_ONLY, 6, _EI),
    (kinds.DUAL_STACK, 6, _EI),
    (kinds.FIREWALLED, 4, _APD),
    (kinds.V6_FIREWALLED, 6, _APD),
    (kinds.HOME, 6, _APD),
    (kinds.HOME_SYMMETRIC, 6, _APD),
    (kinds.NAT_OPEN_V6, 6, _EI),
]

_engines = pytest.mark.parametrize("engine", list(Engine), ids=lambda engine: engine.value)


@_engines
@pytest.mark.parametrize("case", _TRANSLATED, ids=lambda case: case[0].name)
def test_a_nat_is_what_it_claims(
    lab: Lab, engine: Engine, case: tuple[SiteKind, Dependence, Dependence, Ports]
) -> None:
    kind, mapping, filtering, ports = case
    server = Server(lab)
    site = lab.site("site", kind, engine=engine)
    found = server.classify(site.host)
    assert found is not None
    assert (found.mapping, found.filtering, found.ports) == (mapping, filtering, ports)
    assert found.external == str(site.external(4)) != str(site.host.v4)


@pytest.mark.parametrize("case", _UNTRANSLATED, ids=lambda case: f"{case[0]}-v{case[1]}")
def test_public_addresses_stay_what_they_are(
    lab: Lab, case: tuple[SiteKind, int, Dependence]
) -> None:
    kind, version, filtering = case
    server = Server(lab)
    site = lab.site("site", kind)
    found = server.classify(site.host, version)
    assert found is not None
    assert (found.mapping, found.filtering, found.ports) == (_EI, filtering, Ports.PRESERVE)
    assert found.external == str(site.host.address(version)) == str(site.external(version))


@_engines
@pytest.mark.parametrize("ports", list(Ports), ids=lambda ports: ports.value)
@pytest.mark.parametrize(
    ("mapping", "filtering"),
    list(itertools.product(Dependence, Dependence)),
    ids=lambda dependence: dependence.value,
)
def test_every_policy_can_be_had(
    lab: Lab, engine: Engine, mapping: Dependence, filtering: Dependence, ports: Ports
) -> None:
    server = Server(lab)
    site = lab.site(
        "site", SiteKind("any", nat=NatPolicy(mapping, filtering, ports)), engine=engine
    )
    found = server.classify(site.host)
    assert found is not None
    assert (found.mapping, found.filtering, found.ports) == (mapping, filtering, ports)


@_engines
@pytest.mark.parametrize("hairpin", [False, True])
def test_hairpinning_is_a_choice(lab: Lab, engine: Engine, hairpin: bool) -> None:
    server = Server(lab)
    policy = NatPolicy(_EI, _APD, Ports.PRESERVE, hairpin=hairpin)
    site = lab.site("site", SiteKind("any", nat=policy), engine=engine)
    neighbour = lab.add_host(site, "neighbour")
    assert server.hairpins(site.host, neighbour) is hairpin


@_engines
@pytest.mark.parametrize("timeout", [2, 5])
def test_a_mapping_lasts_as_long_as_the_policy_says(lab: Lab, engine: Engine, timeout: int) -> None:
    server = Server(lab)
    policy = NatPolicy(_EI, _EI, Ports.RANDOM, timeout=timeout)
    site = lab.site("site", SiteKind("any", nat=policy), engine=engine)
    assert server.lasts(site.host, timeout - 1.0)
    assert not server.lasts(site.host, timeout + 1.5)


@_engines
def test_two_hosts_with_the_same_port_get_two_mappings(lab: Lab, engine: Engine) -> None:
    pub = lab.host("pub")
    start_echo(pub)
    site = lab.site("site", kinds.PORT_RESTRICTED, engine=engine)
    hosts = [site.host, lab.add_host(site, "second")]
    source = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 9000));"
        f" s.settimeout(5); s.sendto(bytes(100), ('{pub.v4}', 7777));"
        " print(s.recv(100).split(b']')[0].decode() + ']')"
    )
    seen = [host.python("-c", source).stdout.strip() for host in hosts]
    assert seen[0] == f'["{site.external(4)}", 9000]'
    assert seen[1].startswith(f'["{site.external(4)}", ')
    assert seen[1] != seen[0]


@_engines
def test_a_reboot_changes_the_mapping_and_a_socket_goes_on(lab: Lab, engine: Engine) -> None:
    server = Server(lab)
    site = lab.site("site", kinds.CGNAT_PORT_RESTRICTED, engine=engine)
    watch = server.watch(site.host)
    before = watch.look()
    assert before == watch.look()
    site.reboot_router()
    after = watch.look()
    assert after is not None
    assert after != before
    assert after[0] == str(site.external(4))


@_engines
@pytest.mark.parametrize(
    "kind", [kinds.PORT_RESTRICTED, kinds.CGNAT_SYMMETRIC, kinds.HOME], ids=str
)
def test_a_new_public_address(lab: Lab, engine: Engine, kind: SiteKind) -> None:
    server = Server(lab)
    site = lab.site("site", kind, engine=engine)
    watch = server.watch(site.host)
    old = str(site.external(4))
    assert (watch.look() or ("", 0))[0] == old
    site.readdress()
    assert str(site.external(4)) != old
    assert (watch.look() or ("", 0))[0] == str(site.external(4))


@_engines
def test_hosts_of_one_site_reach_each_other_and_not_those_of_others(
    lab: Lab, engine: Engine
) -> None:
    site = lab.site("site", kinds.PORT_RESTRICTED, engine=engine)
    other = lab.site("other", kinds.PORT_RESTRICTED, engine=engine)
    neighbour = lab.add_host(site, "neighbour")
    start_echo(neighbour)
    assert ask(site.host, neighbour.address(4)).received == 1
    assert ask(other.host, neighbour.address(4), tries=1).received == 0


@_engines
@pytest.mark.parametrize("hairpin", [False, True])
def test_subscribers_of_one_carrier_meet_only_by_hairpinning(
    lab: Lab, engine: Engine, hairpin: bool
) -> None:
    policy = NatPolicy(_EI, _EI, Ports.RANDOM, hairpin=hairpin)
    carrier = lab.carrier("carrier", policy, engine=engine)
    server = Server(lab)
    kind = SiteKind("subscriber", nat=kinds.FULL_CONE.nat)
    a, b = (lab.site(label, kind, carrier=carrier, engine=engine) for label in ("a", "b"))
    assert ask(a.host, b.edge.address(4), tries=1).received == 0
    assert server.hairpins(a.host, b.host) is hairpin
