"""What is wrong on which machine: pure functions of what all of them reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from statistics import median, median_low
from typing import Any

from launcher.doctor.facts import GIGABYTE, Facts, code_version, kind_of_gpus
from launcher.doctor.machine import Finding

# Drivers of different versions work together as long as CUDA and NCCL are the same.
MAY_DIFFER = {"driver"}
# Seconds between clocks. Above the first the order of log lines misleads; the second is still far from the
# 300 s after which cluster software refuses credentials (munge's default lifetime), but no drift explains it.
SKEW_DOUBTFUL, SKEW_WRONG = 1.0, 60.0
# Bytes free. Below the first nothing useful can be written; below the others a run of more than the tiny
# model may not reach its end.
DISK_WRONG = GIGABYTE // 10
DISK_DOUBTFUL = {"run folder": 5 * GIGABYTE, "temporary folder": GIGABYTE}
# Importing torch takes 5 to 15 s from a cold disk; more points at an overloaded machine or file system.
SLOW_START = 30.0
# Share of the median bandwidth. Healthy machines of one network differ by less than a factor of two.
SLOW_SHARE = 1 / 3

# By machine and neighbour, what `cluster_check` reports of the two: `size, seconds, bandwidth`, or `error`.
Pairs = Mapping[int, Mapping[int, Mapping[str, Any]]]


def label(node: int, facts: Facts) -> str:
    return f"node {node + 1} ({facts[node]['host']})"


def _differing(values: Mapping[int, Hashable]) -> Iterator[tuple[int, Any, Any]]:
    """Machine, its value and the usual one, for each machine that has another. The usual value is that of
    most machines; of equally many, that of the earliest."""
    counts = Counter(values[node] for node in sorted(values)).most_common(1)
    for node in sorted(values):
        if values[node] != counts[0][0]:
            yield node, values[node], counts[0][0]


def version_findings(facts: Facts) -> Iterator[Finding]:
    for name in facts[min(facts)]["versions"]:
        values = {node: facts[node]["versions"].get(name) for node in facts}
        for node, found, usual in _differing(values):
            text = f"has {name} {found or '-'}, the others {usual or '-'}"
            if name in MAY_DIFFER:
                remedy = "have it updated, or leave this machine out of the job"
                yield Finding("warn", label(node, facts), text, remedy)
            else:
                remedy = "use one environment on all machines: a shared folder, or one container image"
                yield Finding("fail", label(node, facts), text, remedy)


def code_findings(facts: Facts) -> Iterator[Finding]:
    versions = {node: code_version(facts[node]["code"]) for node in facts}
    for node, found, usual in _differing(versions):
        own = facts[node]["code"]
        other = facts[next(n for n in sorted(versions) if versions[n] == usual)]["code"]
        files = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        text = f"has different code, {found}, the others {usual}: {files[0]}{more} differ"
        remedy = "install the same version there, or run from a checkout that all machines share"
        yield Finding("fail", label(node, facts), text, remedy)


def gpu_findings(facts: Facts) -> Iterator[Finding]:
    """Enough of them for the ranks, as many as the others have, of one kind."""
    counts = {node: len(facts[node]["gpus"]) for node in facts}
    kinds = {node: kind_of_gpus(facts[node]["gpus"]) for node in facts if facts[node]["gpus"]}
    for node in sorted(kinds):
        ranks = facts[node]["ranks"]
        if ranks > counts[node]:
            text = f"has {_gpus(counts[node])}, but --nproc asks for {ranks} ranks"
            yield Finding("fail", label(node, facts), text, "give as many ranks as GPUs, or repair the GPU")
        if " and " in kinds[node]:
            text = f"has GPUs of several kinds, {kinds[node]}"
            yield Finding("fail", label(node, facts), text, "choose one kind with CUDA_VISIBLE_DEVICES")
    # Fewer GPUs than elsewhere are harmless where every machine runs the same number of ranks all the same.
    same_ranks = len({own["ranks"] for own in facts.values()}) == 1
    for node, found, usual in _differing(counts):
        text = f"has {_gpus(found)}, the others {usual}"
        remedy = "check nvidia-smi and CUDA_VISIBLE_DEVICES there, or leave this machine out of the job"
        yield Finding("warn" if found and same_ranks else "fail", label(node, facts), text, remedy)
    for node, found, usual in _differing(kinds) if kinds else ():
        text = f"has GPUs {found}, the others {usual}"
        remedy = "ask for one kind of GPU (sbatch --constraint or --gres), or leave this machine out"
        yield Finding("fail", label(node, facts), text, remedy)


def _gpus(count: int) -> str:
    return "no GPU" if count == 0 else f"{count} GPU{'s' * (count > 1)}"


def can_exchange(facts: Facts) -> bool:
    """Whether ranks of all machines can form one group, as far as the reports tell."""
    same = all(len({own["versions"][name] for own in facts.values()}) == 1 for name in ("torch", "NCCL"))
    return same and not any(finding.level == "fail" for finding in gpu_findings(facts))


def folder_findings(facts: Facts, sees: Mapping[int, list[int]]) -> Iterator[Finding]:
    """`sees` maps a machine to those whose file it has read in the run folder."""
    for node in sorted(facts):
        if facts[node]["folder_error"]:
            text = f"cannot write in {facts[node]['out']}: {facts[node]['folder_error']}"
            remedy = "give --out in a folder that all machines may write in"
            yield Finding("fail", label(node, facts), text, remedy)
    able = [node for node in sorted(sees) if not facts[node]["folder_error"]]
    # The machine that most others see has the right folder; of equally many, the earliest.
    center = max(able, key=lambda node: (sum(node in sees[n] for n in able), -node), default=0)
    for node in able:
        if center not in sees[node] or node not in sees[center]:
            other = f"{facts[center]['out']} on {label(center, facts)}"
            text = f"the run folder is not shared: {facts[node]['out']} there is another folder than {other}"
            remedy = "give --out on a file system that all machines mount"
            yield Finding("fail", label(node, facts), text, remedy)


def disk_findings(facts: Facts) -> Iterator[Finding]:
    remedies = {"run folder": "give --out on another disk", "temporary folder": "set TMPDIR to another disk"}
    for node in sorted(facts):
        for which, disk in facts[node]["disks"].items():
            if disk["free"] < DISK_DOUBTFUL[which]:
                text = f"{disk['free'] / GIGABYTE:.1f} GB free for the {which} {disk['path']}"
                remedy = f"free some, or {remedies[which]}"
                wrong = disk["free"] < DISK_WRONG
                yield Finding("fail" if wrong else "warn", label(node, facts), text, remedy)


def start_findings(facts: Facts) -> Iterator[Finding]:
    for node in sorted(facts):
        if (seconds := facts[node]["seconds"]) > SLOW_START:
            text = f"took {seconds:.0f} s to import torch and examine the machine"
            remedy = "see what else runs there; keep the environment on a fast disk or in a container image"
            yield Finding("warn", label(node, facts), text, remedy)


def clock_skews(offsets: Mapping[int, tuple[float, float]]) -> dict[int, float]:
    """Seconds each clock is ahead of the median one; of two machines, of the first's. `offsets` are against
    the first machine, with their possible errors."""
    center = median_low(offset for offset, _ in offsets.values()) if len(offsets) > 2 else 0.0
    return {node: offset - center for node, (offset, _) in offsets.items()}


def clock_findings(facts: Facts, offsets: Mapping[int, tuple[float, float]]) -> Iterator[Finding]:
    for node, skew in sorted(clock_skews(offsets).items()):
        if abs(skew) - offsets[node][1] > SKEW_DOUBTFUL:
            text = f"its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the others'"
            remedy = "let chrony or ntpd set it (chronyc makestep), or leave this machine out of the job"
            yield Finding("fail" if abs(skew) > SKEW_WRONG else "warn", label(node, facts), text, remedy)


def rank_findings(
    facts: Facts, pairs: Pairs, inside: Mapping[int, Mapping[str, Any]], errors: Mapping[int, list[str]]
) -> Iterator[Finding]:
    """From the results of ranks with neighbours and among a machine's own ranks, and the errors of those that
    failed; no list of errors means that the machine did not report how its ranks ended."""
    for node in sorted(facts):
        if node not in errors:
            text = "its ranks stopped responding"
            yield Finding("fail", label(node, facts), text, "look at that machine's own output")
        elif errors[node]:
            text, remedy = f"all-reduce: {errors[node][0]}", "run plast doctor there; set NCCL_DEBUG=INFO"
            yield Finding("fail", label(node, facts), text, remedy)
        if "error" in inside.get(node, {}):
            text = f"no all-reduce inside it: {inside[node]['error']}"
            remedy = "check nvidia-smi topo -m; start a container with --ipc=host or --shm-size=8g"
            yield Finding("fail", label(node, facts), text, remedy)
    # The neighbours of a machine whose ranks failed waited for it in vain, which says nothing about them.
    sound = {node for node in pairs if errors.get(node) == []}
    yield from network_findings(
        facts, {node: {o: r for o, r in pairs[node].items() if o in sound} for node in sound}
    )


def network_findings(facts: Facts, pairs: Pairs) -> Iterator[Finding]:
    cut_off = {node for node in pairs if pairs[node] and all("error" in r for r in pairs[node].values())}
    # Either machine of a pair may have seen the error; the first of the two tells it.
    errors = {
        (min(node, other), max(node, other)): result["error"]
        for node in sorted(pairs, reverse=True)
        for other, result in pairs[node].items()
        if "error" in result
    }
    for edge, error in sorted(errors.items()):
        # A machine that reaches nobody is to blame for its pairs; but two that have only each other share it.
        blamed = [node for node in edge if node in cut_off and not cut_off.issuperset(edge)]
        chosen = sorted({name for node in edge for name in facts[node]["interfaces"]})
        yield Finding(
            "fail",
            label(blamed[0], facts) if blamed else "network",
            f"no all-reduce between {label(edge[0], facts)}, {label(edge[1], facts)}: {error}",
            f"{' and '.join(chosen)} must name an interface that both have and that joins them"
            if chosen
            else "each host name must resolve to an address that the other reaches, with all ports open "
            "between them; or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that joins them",
        )
    best = best_bandwidths(pairs)
    middle = median(best.values()) if best else 0.0
    for node, bandwidth in sorted(best.items()):
        if bandwidth < SLOW_SHARE * middle:
            text = f"exchanges {bandwidth / GIGABYTE:.2f} GB/s, the others {middle / GIGABYTE:.2f} GB/s"
            yield Finding("warn", label(node, facts), text, "check its network, or leave this machine out")


def best_bandwidths(pairs: Pairs) -> dict[int, float]:
    """Bytes a second to the neighbour that each machine reaches best."""
    rates = {n: [r["bandwidth"] for r in pairs[n].values() if "bandwidth" in r] for n in pairs}
    return {node: max(found) for node, found in rates.items() if found}
