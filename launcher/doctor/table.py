"""The distributed doctor's table, a line a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.doctor.facts import code_version
from launcher.doctor.findings import Facts, kind_of_gpus
from launcher.doctor.machine import GIGABYTE

SHOWN = ("python", "torch", "transformers", "deepspeed", "NCCL", "driver")


def machine_table(
    facts: Facts,
    count: int,
    skews: Mapping[int, float],
    bandwidths: Mapping[int, float],
) -> str:
    """`skews` in seconds, `bandwidths` to the neighbour in bytes a second; `-` for what is not known."""
    rows = [["node", "host", *SHOWN, "code", "ranks on", "run free", "tmp free", "clock", "GB/s"]]
    for node in range(count):
        if node in facts:
            rows.append(_row(node, facts[node], skews.get(node), bandwidths.get(node)))
        else:
            rows.append([str(node + 1), *["-"] * (len(rows[0]) - 1)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _row(node: int, own: Mapping[str, Any], skew: float | None, bandwidth: float | None) -> list[str]:
    gpus = own["gpus"]
    where = f"{len(gpus)} × {kind_of_gpus(gpus)}" if gpus else f"{own['cores']} cores"
    return [
        str(node + 1),
        own["host"],
        *(own["versions"].get(name) or "-" for name in SHOWN),
        code_version(own["code"]),
        f"{own['ranks']} on {where}",
        *(f"{disk['free'] / GIGABYTE:.0f} GB" for disk in own["disks"].values()),
        "-" if skew is None else f"{skew:+.3f} s",
        "-" if bandwidth is None else f"{bandwidth / GIGABYTE:.2f}",
    ]


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def all_reduce_line(facts: Facts, result: Mapping[str, Any] | None) -> str:
    """`result` of `cluster_check` over all ranks; None where it was not measured."""
    if result is None:
        return "all-reduce: not measured"
    ranks = sum(own["ranks"] for own in facts.values())
    if ranks == 1:
        return "all-reduce: one rank has nothing to exchange"
    size, milliseconds = result["size"] / 2**20, 1000 * result["seconds"]
    return (
        f"all-reduce: {ranks} rank{'s' * (ranks > 1)}, {size:.0f} MiB in {milliseconds:.3g} ms, bus "
        f"bandwidth {result['bandwidth'] / GIGABYTE:.3g} GB/s"
    )
