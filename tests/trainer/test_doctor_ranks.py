"""What `fovea doctor` finds of several ranks together: on two real ones, and from what ranks told."""

import re
import socket
import time
from dataclasses import replace

import pytest

from ranks import on_ranks
from trainer.doctor import collectives, crew
from trainer.doctor.crew import Crew


def faulty(findings):
    """The one finding among them that is not well."""
    (found,) = (f for f in findings if f.status != "ok")
    return found


def all_well(findings):
    return {f.status for f in findings} == {"ok"}


FOUR = Crew(0, 4, {0: "n1", 1: "n1", 2: "n2", 3: "n2"})


def collective_checks(world):
    """On each of two ranks: a clock that is 5 s ahead on rank 1; what a rank adds that it should not."""
    both = Crew(world.rank, 2, {0: "n1", 1: "n2"})
    skewed = list(collectives.clocks(world, both, lambda: time.time() + 5 * world.rank))
    right = list(collectives.clocks(world, both))
    lying = replace(world, rank=3) if world.rank else world
    wrong = list(collectives.sums(lying, both, 2**16))
    sums = list(collectives.sums(world, both, 2**20))
    links = list(collectives.links(world, both, 2**16))
    return skewed, right, wrong, sums, links


def test_two_real_ranks_find_a_clock_that_is_ahead_and_a_rank_that_sums_wrongly():
    (skewed, right, wrong, sums, links), of_other = on_ranks(collective_checks)
    assert of_other == ([], [], [], [], [])  # rank 0 speaks for both
    assert (skewed[0].status, skewed[0].where) == ("warn", ("n2",))
    off = re.fullmatch(r"off from rank 0's: rank 1 \(n2\) by (\+.*) s", skewed[0].said)
    assert float(off[1]) == pytest.approx(5, abs=2)
    assert right[0].status == "ok"
    assert (wrong[0].status, wrong[0].said) == ("fail", "wrong sums on rank 0 (n1), rank 1 (n2)")
    assert (sums[0].name, sums[0].status) == ("all-reduce", "ok")
    assert "bus bandwidth" in sums[0].said
    assert (links[0].name, links[0].status) == ("links between nodes", "ok")


@pytest.mark.parametrize("ranks", range(2, 8))
def test_each_link_of_the_ring_is_tried_once_and_no_rank_is_on_two_at_a_time(ranks):
    turns = [list(collectives._links_of(ranks, t)) for t in range(1 if ranks == 2 else 2 + ranks % 2)]
    assert sorted(a for turn in turns for a in turn) == list(range(1 if ranks == 2 else ranks))
    for turn in turns:
        ends = [r for a in turn for r in (a, (a + 1) % ranks)]
        assert len(ends) == len(set(ends))


def test_a_slow_link_is_named_among_those_of_its_kind():
    eight = Crew(0, 8, {r: f"n{1 + r // 2}" for r in range(8)})
    speeds = {a: 200e9 if a % 2 == 0 else 25e9 for a in range(8)}
    assert all_well(collectives.judge_links(speeds, eight))  # between nodes is slower than inside, everywhere
    found = faulty(collectives.judge_links(speeds | {3: 2e9, 5: 2e9}, eight))
    assert (found.name, found.status, found.where) == ("links between nodes", "warn", ("n3",))
    assert "2 slow; slowest of 4: rank 3 (n2), rank 4 (n3): 2 GB/s each way; median " in found.said


def test_ranks_that_differ_are_named():
    alike = {"torch": "2.13", "recipe": "digest a"}
    assert all_well(crew.same_everywhere(dict.fromkeys(range(4), alike), FOUR.hosts))
    facts = {0: alike, 1: alike, 2: alike, 3: {"torch": "2.11", "recipe": "digest a"}}
    found = faulty(crew.same_everywhere(facts, FOUR.hosts))
    assert (found.status, found.where) == ("fail", ("n2",))
    assert found.said == "rank 3: torch 2.11, on most 2.13"
    facts[2] = {"torch": "2.13"}
    third, fourth = crew.same_everywhere(facts, FOUR.hosts)
    assert (third.said, fourth.said) == (
        "rank 2: recipe missing, on most digest a",
        "rank 3: torch 2.11, on most 2.13",
    )


def test_ranks_that_do_not_come_are_named_with_the_nodes_that_sent_none():
    some = Crew(0, 4, {0: "n1.local", 1: "n1.local"})
    found = crew.who_came(some, 30.0, ["n1", "n2"])
    assert (found.status, found.where) == ("fail", ("n2",))
    assert found.said == "2 of 4 came within 30 s; missing: rank 2, 3; no rank came from n2"
    assert crew.who_came(FOUR, 1.0, []).status == "ok"


def test_the_first_rank_of_each_node_asks_for_names():
    assert sorted(FOUR.first_of_nodes) == [0, 2]
    assert Crew(3, 4, {3: "n2", 1: "n1"}).first_of_nodes == (3, 1)


def test_a_name_that_does_not_resolve_or_that_its_own_node_takes_for_itself_fails():
    seen = {r: {"n1": "10.0.0.1", "n2": "10.0.0.2"} for r in range(4)}
    assert all_well(crew.names(seen, FOUR))
    blind = faulty(crew.names(seen | {1: {"n1": "10.0.0.1", "n2": ""}}, FOUR))
    assert (blind.said, blind.where) == ("n2 does not resolve on rank 1 (n1)", ("n1",))
    own = {"n1": "10.0.0.1", "n2": "127.0.1.1"}
    loop = faulty(crew.names(seen | {2: own, 3: own}, FOUR))
    assert loop.where == ("n2",)
    assert "127.0.1.1, others for 10.0.0.2" in loop.said
    everywhere = {r: {"n1": "127.0.0.11", "n2": "127.0.0.12"} for r in range(4)}
    assert all_well(crew.names(everywhere, FOUR))  # virtual nodes of one machine
    assert crew.addresses(["localhost", "no-such-host.invalid"])["no-such-host.invalid"] == ""


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_in_use(address):
    with socket.socket() as s:
        s.bind((address, 0))
        s.listen()
        port = s.getsockname()[1]
        assert crew.port_free(port).status == "fail"
    assert crew.port_free(port).status == "ok"
