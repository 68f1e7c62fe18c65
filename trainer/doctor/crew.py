"""Who came to an examination, from where, and whether all are alike: told by their notes alone."""

import ipaddress
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.doctor.finding import Finding


@dataclass(frozen=True)
class Crew:
    """The ranks that came: the host of each. `token` names what this examination leaves behind."""

    rank: int
    ranks: int
    hosts: Mapping[int, str]
    token: str = "alone"

    @property
    def host(self) -> str:
        return self.hosts[self.rank]

    @property
    def is_main(self) -> bool:
        return self.rank == min(self.hosts)

    @property
    def all_came(self) -> bool:
        return len(self.hosts) == self.ranks

    @property
    def here(self) -> int:
        """Ranks on this rank's host."""
        return sum(h == self.host for h in self.hosts.values())

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.hosts.values()))

    @property
    def first_of_nodes(self) -> tuple[int, ...]:
        """The lowest rank of each node."""
        return tuple({h: r for r, h in sorted(self.hosts.items(), reverse=True)}.values())

    def named(self, ranks: Iterable[int]) -> str:
        """`rank 3 (n2), rank 4 (n2)`, and how many more."""
        ranks = list(ranks)
        shown = ", ".join(f"rank {r} ({self.hosts[r]})" for r in ranks[:4])
        return shown + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")


def who_came(crew: Crew, waited_s: float, nodes: Sequence[str]) -> Finding:
    """Called on rank 0. `nodes`: those that the step was given, where that is known."""
    if crew.all_came:
        return Finding("ranks", "ok", f"all {crew.ranks} came", where=crew.nodes)
    missing = [r for r in range(crew.ranks) if r not in crew.hosts]
    shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    silent = [n for n in nodes if n.partition(".")[0] not in {h.partition(".")[0] for h in crew.nodes}]
    told = f"; no rank came from {', '.join(silent)}" if silent else ""
    return Finding(
        "ranks",
        "fail",
        f"{len(crew.hosts)} of {crew.ranks} came within {waited_s:.0f} s; missing: rank {shown}{told}",
        "look at what those tasks wrote, and whether their nodes are up (sinfo -R) and reach rank 0's port",
        where=tuple(silent) or crew.nodes,
    )


def same_everywhere(facts: Mapping[int, Mapping[str, str]], hosts: Mapping[int, str]) -> Iterator[Finding]:
    """Versions, source and recipe of all ranks; those of most are taken for right."""
    names = dict.fromkeys(name for of_rank in facts.values() for name in of_rank)
    differ: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        told = {r: f.get(name, "missing") for r, f in facts.items()}
        usual, _ = Counter(told.values()).most_common(1)[0]
        if others := tuple(r for r, value in told.items() if value != usual):
            differ.setdefault(others, []).append(f"{name} {told[others[0]]}, on most {usual}")
    for others, lines in sorted(differ.items()):
        yield Finding(
            "same everywhere",
            "fail",
            f"rank {', '.join(map(str, others[:8]))}{' ...' if len(others) > 8 else ''}: {'; '.join(lines)}",
            "give all nodes one environment, checkout and recipe: on a shared disk, or by a container",
            where=tuple(dict.fromkeys(hosts[r] for r in others)),
        )
    if not differ:
        yield Finding("same everywhere", "ok", ", ".join(names), where=tuple(dict.fromkeys(hosts.values())))


def addresses(hosts: Iterable[str]) -> dict[str, str]:
    """Each name as it resolves here; an empty text for one that does not."""
    found = {}
    for host in hosts:
        try:
            found[host] = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError:
            found[host] = ""
    return found


def names(seen: Mapping[int, Mapping[str, str]], crew: Crew) -> Iterator[Finding]:
    """Called on rank 0. `seen`: what `addresses` gives on the first rank of each node."""
    if len(crew.nodes) == 1:
        yield Finding("names", "skipped", "one node alone")
        return
    fine = True
    for host in crew.nodes:
        blind = [r for r, found in seen.items() if not found.get(host)]
        if blind:
            fine = False
            yield Finding(
                "names",
                "fail",
                f"{host} does not resolve on {crew.named(blind)}",
                "put all nodes into DNS, or into /etc/hosts of every node",
                where=tuple(dict.fromkeys(crew.hosts[r] for r in blind)),
            )
            continue
        own = {found[host] for r, found in seen.items() if crew.hosts[r] == host}
        others = {found[host] for r, found in seen.items() if crew.hosts[r] != host}
        if others and all(map(_is_loopback, own)) and not any(map(_is_loopback, others)):
            fine = False
            yield Finding(
                "names",
                "fail",
                f"{host} takes its own name for {', '.join(own)}, others for {', '.join(sorted(others))}: "
                "gloo would listen where nobody comes",
                "name the interface in slurm/env.sh (GLOO_SOCKET_IFNAME), or take the line out of /etc/hosts",
                where=(host,),
            )
    if fine:
        said = "every node resolves on every node"
        yield Finding("names", "ok", said, where=crew.nodes)


def port_free(port: int) -> Finding:
    """Called on the host of rank 0, before rank 0 listens there."""
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("", port))
        except OSError as e:
            return Finding(
                "port",
                "fail",
                f"port {port}, where ranks meet, cannot be opened: {e.strerror}",
                f"ss -ltnp 'sport = :{port}' says who has it; or set MASTER_PORT to a free one for all ranks",
            )
    return Finding("port", "ok", f"{port} is free for ranks to meet")


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
