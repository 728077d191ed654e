"""What is wrong on which machine, from what all of them told. Pure functions of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from statistics import median, median_low
from typing import Any, Literal

from launcher.doctor.facts import code_version
from launcher.doctor.machine import GIGABYTE, Finding

Facts = Mapping[int, Mapping[str, Any]]
# Drivers of one NCCL and CUDA work together.
MAY_DIFFER = {"driver"}
# Seconds between clocks: from here on the order of log lines misleads; from here on credentials of cluster
# software (munge's live 300 s) are near refusal.
SKEW_DOUBTFUL, SKEW_WRONG = 1.0, 60.0
# Bytes free: below, nothing can be written; below, a run with more than the tiny model may not end.
DISK_WRONG = GIGABYTE // 10
DISK_DOUBTFUL = {"run folder": 5 * GIGABYTE, "temporary folder": GIGABYTE}
# Seconds; with a warm disk a few are usual.
SLOW_START = 30.0
# A machine whose best neighbour is reached at less than this share of the median of all pairs.
SLOW_SHARE = 1 / 3


def label(node: int, facts: Facts) -> str:
    return f"node {node + 1} ({facts[node]['host']})" if node in facts else f"node {node + 1}"


def labels(nodes: Sequence[int], facts: Facts) -> str:
    return ", ".join(label(node, facts) for node in nodes)


def usual(values: Mapping[int, Hashable]) -> Any:
    """What most machines have; of equally many, what the earliest of them has."""
    counts = Counter(values[node] for node in sorted(values))
    return counts.most_common(1)[0][0]


def _differing(values: Mapping[int, Hashable]) -> Iterator[tuple[int, Any, Any]]:
    """Machine, its value, the usual one; for those that have another."""
    most = usual(values)
    for node in sorted(values):
        if values[node] != most:
            yield node, values[node], most


def version_findings(facts: Facts) -> Iterator[Finding]:
    for name in facts[min(facts)]["versions"]:
        values = {node: facts[node]["versions"].get(name) for node in facts}
        level: Literal["warn", "fail"] = "warn" if name in MAY_DIFFER else "fail"
        for node, found, most in _differing(values):
            yield Finding(
                level, label(node, facts), f"has {name} {found or '-'}, the others {most or '-'}",
                "use one environment on all machines: a folder that all see, or one container"
                if name != "driver" else "have it updated, or leave this machine out of the job",
            )  # fmt: skip


def code_findings(facts: Facts) -> Iterator[Finding]:
    versions = {node: code_version(facts[node]["code"]) for node in facts}
    for node, found, most in _differing(versions):
        own = facts[node]["code"]
        other = facts[next(n for n in sorted(versions) if versions[n] == most)]["code"]
        files = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        text = f"has other code, {found}, the others {most}: {files[0]}{more} differ"
        yield Finding(
            "fail", label(node, facts), text,
            "install the same version there, or run from a checkout that all machines see",
        )  # fmt: skip


def gpu_findings(facts: Facts) -> Iterator[Finding]:
    """Enough of them for the ranks, as many as the others have, of one kind."""
    for node in sorted(facts):
        gpus, ranks = facts[node]["gpus"], facts[node]["ranks"]
        if gpus and ranks > len(gpus):
            text = f"has {_count(len(gpus))}, but {ranks} ranks are asked for (--nproc)"
            yield Finding("fail", label(node, facts), text, "ask for as many ranks as GPUs, or mend the GPU")
    counts = {node: len(facts[node]["gpus"]) for node in facts}
    ranks_differ = len({own["ranks"] for own in facts.values()}) > 1
    for node, found, most in _differing(counts):
        enough = found > 0 and not ranks_differ
        yield Finding(
            "warn" if enough else "fail", label(node, facts), f"has {_count(found)}, the others {most}",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES there, or leave this machine out of the job",
        )  # fmt: skip
    kinds = {node: kind_of_gpus(facts[node]["gpus"]) for node in facts if facts[node]["gpus"]}
    for node, found, most in _differing(kinds) if kinds else ():
        yield Finding(
            "fail", label(node, facts), f"has GPUs {found}, the others {most}",
            "ask for one kind of GPU (sbatch --constraint or --gres), or leave this machine out",
        )  # fmt: skip
    for node in sorted(kinds):
        if kinds[node] == usual(kinds) and " and " in kinds[node]:
            text = f"has GPUs of several kinds, {kinds[node]}"
            yield Finding("fail", label(node, facts), text, "choose those of one in CUDA_VISIBLE_DEVICES")


def can_exchange(facts: Facts) -> bool:
    """Whether ranks of all machines can form one group, by what is known before it is tried."""
    same = all(len({own["versions"][name] for own in facts.values()}) == 1 for name in ("torch", "NCCL"))
    return same and not any(finding.level == "fail" for finding in gpu_findings(facts))


def kind_of_gpus(gpus: Sequence[Mapping[str, Any]]) -> str:
    """Name and memory, whole gigabytes: two cards of a kind may differ in a few megabytes."""
    kinds = {f"{gpu['name']} {gpu['memory_bytes'] / GIGABYTE:.0f} GB" for gpu in gpus}
    return " and ".join(sorted(kinds))


def _count(gpus: int) -> str:
    return "no GPU" if gpus == 0 else f"{gpus} GPU{'s' * (gpus > 1)}"


def folder_findings(facts: Facts, sees: Mapping[int, Sequence[int]]) -> Iterator[Finding]:
    """`sees` maps a machine to those whose file it has read in the run folder."""
    able = [node for node in sorted(facts) if not facts[node]["folder_error"]]
    for node in sorted(facts):
        if node not in able:
            text = f"cannot write in {facts[node]['out']}: {facts[node]['folder_error']}"
            yield Finding(
                "fail", label(node, facts), text, "give --out in a folder all machines may write in"
            )
    told = [node for node in able if node in sees]
    if not told:
        return
    center = max(told, key=lambda node: (sum(node in sees[n] for n in told), -node))
    for node in told:
        if center not in sees[node] or node not in sees[center]:
            yield Finding(
                "fail", label(node, facts),
                f"the run folder is not shared: {facts[node]['out']} there is another folder than "
                f"{facts[center]['out']} on {label(center, facts)}",
                "give --out on a file system that all machines mount",
            )  # fmt: skip


def disk_findings(facts: Facts) -> Iterator[Finding]:
    for node in sorted(facts):
        for which, disk in facts[node]["disks"].items():
            if disk["free"] < DISK_DOUBTFUL[which]:
                mend = "give --out on another disk" if which == "run folder" else "set TMPDIR to another disk"
                yield Finding(
                    "fail" if disk["free"] < DISK_WRONG else "warn", label(node, facts),
                    f"{disk['free'] / GIGABYTE:.1f} GB free for the {which} {disk['path']}",
                    f"free some, or {mend}",
                )  # fmt: skip


def start_findings(facts: Facts) -> Iterator[Finding]:
    """Whose Python takes long to import what a run needs."""
    for node in sorted(facts):
        if (seconds := facts[node]["seconds"]) > SLOW_START:
            text = f"took {seconds:.0f} s to import torch and look at itself"
            mend = "see what else runs there; keep the environment on a quick disk or in a container image"
            yield Finding("warn", label(node, facts), text, mend)


def clock_skews(offsets: Mapping[int, tuple[float, float]]) -> dict[int, float]:
    """Seconds each clock is ahead of the middle one; of two machines, of the first's. `offsets` are against
    the first machine, with their possible errors."""
    if not offsets:
        return {}
    center = median_low(offset for offset, _ in offsets.values()) if len(offsets) > 2 else 0.0
    return {node: offset - center for node, (offset, _) in offsets.items()}


def clock_findings(facts: Facts, offsets: Mapping[int, tuple[float, float]]) -> Iterator[Finding]:
    for node, skew in sorted(clock_skews(offsets).items()):
        if abs(skew) - offsets[node][1] > SKEW_DOUBTFUL:
            yield Finding(
                "fail" if abs(skew) > SKEW_WRONG else "warn", label(node, facts),
                f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the others'",
                "let chrony or ntpd set it (chronyc makestep), or leave this machine out of the job",
            )  # fmt: skip


Pairs = Mapping[int, Mapping[int, Mapping[str, Any]]]


def network_findings(facts: Facts, pairs: Pairs) -> Iterator[Finding]:
    """`pairs` maps each machine to its result with each neighbour, of `cluster_check`."""
    broken = sorted((node, other) for node in pairs for other in pairs[node] if "error" in pairs[node][other])
    edges = {(min(pair), max(pair)) for pair in broken}
    cut_off = [node for node in pairs if pairs[node] and all("error" in r for r in pairs[node].values())]
    for edge in sorted(edges):
        # A machine that reaches nobody is to blame for its pairs; but two that have only each other share it.
        blamed = [node for node in edge if node in cut_off and not set(edge) <= set(cut_off)]
        text = f"no all-reduce between {labels(edge, facts)}: {_error_of(pairs, edge)}"
        yield Finding(
            "fail", label(blamed[0], facts) if blamed else "network", text, _network_mend(facts, edge)
        )
    best = best_bandwidths(pairs)
    middle = median(best.values()) if best else 0.0
    for node, bandwidth in sorted(best.items()):
        if bandwidth < SLOW_SHARE * middle:
            text = f"exchanges {bandwidth / GIGABYTE:.2f} GB/s, the others {middle / GIGABYTE:.2f} GB/s"
            yield Finding("warn", label(node, facts), text, "look at its network, or leave this machine out")


def best_bandwidths(pairs: Pairs) -> dict[int, float]:
    """Bytes a second to the neighbour that each machine reaches best."""
    rates = {n: [r["bandwidth"] for r in pairs[n].values() if "bandwidth" in r] for n in pairs}
    return {node: max(found) for node, found in rates.items() if found}


def _error_of(pairs: Pairs, edge: tuple[int, int]) -> str:
    results = (pairs.get(a, {}).get(b, {}) for a, b in (edge, edge[::-1]))
    return str(next(r["error"] for r in results if "error" in r))


def _network_mend(facts: Facts, edge: tuple[int, int]) -> str:
    chosen = {name for node in edge for name in facts[node]["interfaces"]}
    if chosen:
        return f"{' and '.join(sorted(chosen))} must name an interface that both have and that joins them"
    return (
        "each one's name must resolve to an address that the other reaches, with all ports open between "
        "them; or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that joins them"
    )
