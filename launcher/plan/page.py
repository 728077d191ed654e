"""A plan as a page of text, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.plan.resources import CARDS, GIB, USABLE

WIDTH = 100
SHOWN_RANKS = (1, 2, 4, 8)


def plan_page(plan: dict[str, Any]) -> str:
    """The text of a plan by `commands.plan.make_plan`."""
    parts = [_model(plan), _data(plan), _work(plan), _memory(plan), _traffic(plan), _time(plan)]
    parts += [_recommendation(plan), _assumptions(plan)]
    return "\n\n".join(parts)


def _model(plan: dict[str, Any]) -> str:
    model, parameters, selection = plan["model"], plan["parameters"], plan["selection"]
    layers = selection["layers"]
    which = f"layers {_ranges(layers)} of {model['decoder_layers']}, modules {selection['modules']}"
    assumed = " (assumed)" if selection["assumed"] else ""
    return "\n".join(
        [
            f"Plan of {plan['recipe']}",
            f"  model       {model['path']}, {model['dtype']}",
            f"  config      {model['architecture_from']}",
            f"  parameters  {_billions(parameters['total'])}",
            f"  trained     {_billions(parameters['trained'])} = {parameters['share']:.2%}: {which}{assumed}",
        ]
    )


def _data(plan: dict[str, Any]) -> str:
    if plan["data"]["assumed"]:
        return f"Data: {plan['data']['records']:,} records (assumed, see below)"
    return "\n".join(["Data", *(part for line in plan["data"]["audit_lines"] for part in _wrapped(line))])


def _work(plan: dict[str, Any]) -> str:
    t, c = plan["training"], plan["collecting"]
    rows = [
        ["", "", "tokens", "one by one", "sharing prefixes", "rows", "useful work"],
        ["collecting", f"{c['records']:,} records", *_work_cells(c)],
        ["training, per step", f"{t['samples']:.0f} pairs", *_work_cells(t)],
    ]
    saved = t["all_layers_flops"] / t["useful_flops"]
    return "\n".join(
        [
            "Work",
            *_table(rows),
            *_wrapped(
                f"whole training: {t['steps']:,} steps, {t['records']:,} records "
                f"({t['validation_records']} more held out), {t['total_samples']:,.0f} pairs, "
                f"{t['total_tokens']:,.0f} tokens, {_flop(t['total_useful_flops'])}; training every layer "
                f"would take {saved:.2f}× the FLOPs"
            ),
        ]
    )


def _work_cells(work: dict[str, Any]) -> list[str]:
    return [
        f"{work['tokens']:,.0f}",
        f"{work['unshared_tokens']:,.0f}",
        f"{work['prefix_sharing']:.2f}× fewer",
        f"{work['rows']:,}",
        _flop(work["useful_flops"]),
    ]


def _memory(plan: dict[str, Any]) -> str:
    head = ["", "ranks", "weights", "grads", "optim.", "activ.", "logits", "other", "peak", "fits"]
    head += ["recomp.", "fits"]
    rows = [head]
    for entry in plan["settings"]:
        if entry["ranks"] not in _ranks(plan):
            continue
        kept = entry["memory"]
        other = kept["working"] + kept["buffers"] + kept["runtime"]
        keys = ("weights", "gradients", "optimizer", "activations", "logits")
        rows.append(
            [
                Path(entry["deepspeed"]).stem,
                str(entry["ranks"]),
                *(_gib(kept[key]) for key in keys),
                _gib(other),
                _gib(kept["peak"]),
                _card(entry["cards"]),
                _gib(entry["memory_with_recompute"]["peak"]),
                _card(entry["cards_with_recompute"]),
            ]
        )
    longest = plan["training"]["longest_row"]
    num_gpus = plan["options"]["gpus"]
    host_notes = [
        f" {Path(entry['deepspeed']).stem} also takes {_gib(entry['memory']['host'])} GiB of host memory per "
        f"rank ({num_gpus} ranks)."
        for entry in plan["settings"]
        if entry["ranks"] == num_gpus and entry["memory"]["host"]
    ]
    return "\n".join(
        [
            f"Memory per rank, GiB (rows of up to {longest:,} tokens; recomp.: peak with "
            "train.recompute=true)",
            *_table(rows),
            *_wrapped(
                f"'fits' is the smallest card of {', '.join(map(str, CARDS))} GB whose {USABLE:.0%} hold the "
                "peak. 'other': one layer's gradients in use, DeepSpeed's buckets and gathered weights, and "
                f"CUDA with NCCL.{''.join(host_notes)}"
            ),
        ]
    )


def _traffic(plan: dict[str, Any]) -> str:
    ranks = [count for count in _ranks(plan) if count > 1]
    rows = [["sent by each rank", *(f"{count} ranks" for count in ranks)]]
    for name in dict.fromkeys(entry["deepspeed"] for entry in plan["settings"]):
        sent = {e["ranks"]: sum(e["traffic"].values()) for e in plan["settings"] if e["deepspeed"] == name}
        rows.append([Path(name).stem, *(f"{sent[count] / 1e9:.2f} GB" for count in ranks)])
    return "\n".join(["Bytes between ranks per step (ring algorithms)", *_table(rows)])


def _time(plan: dict[str, Any]) -> str:
    options = plan["options"]
    rows = [
        [
            "ranks",
            "rows per rank",
            "idle",
            "s per step",
            "training",
            "with recompute",
            "collecting",
            "GPU time",
        ]
    ]
    for entry in plan["time"]:
        if entry["ranks"] not in _ranks(plan):
            continue
        seconds = entry["training_seconds"] + entry["collecting_seconds"]
        rows.append(
            [
                str(entry["ranks"]),
                str(entry["micro_steps"]),
                f"{entry['idle_share']:.0%}",
                f"{entry['seconds_per_step']:.2f}",
                _duration(entry["training_seconds"]),
                _duration(entry["training_seconds_with_recompute"]),
                _duration(entry["collecting_seconds"]),
                _duration(seconds * entry["ranks"]),
            ]
        )
    return "\n".join(
        [
            f"Time at {options['mfu']:.0%} MFU of {options['peak_tflops']:g} TFLOP/s per GPU "
            "(plan.mfu, plan.peak_tflops)",
            *_table(rows),
        ]
    )


def _recommendation(plan: dict[str, Any]) -> str:
    advice, options = plan["recommendation"], plan["options"]
    gpus = f"{options['gpus']} GPUs of {options['gpu_memory']:g} GB (plan.gpus, plan.gpu_memory)"
    lines = [f"Recommended for {gpus}"]
    if advice["deepspeed"] is not None:
        recompute = str(advice["recompute"]).lower()
        lines.append(f"  train.deepspeed={advice['deepspeed']} train.recompute={recompute}")
    lines += _wrapped(advice["why"])
    for name, text in advice["why_not"].items():
        lines += _wrapped(f"not {Path(name).stem}: it {text}", "- ")
    return "\n".join(lines)


def _assumptions(plan: dict[str, Any]) -> str:
    if not plan["assumptions"]:
        return "Assumed: nothing about the model, layers or data."
    lines = [line for text in plan["assumptions"] for line in _wrapped(text, "- ")]
    return "\n".join(["Assumed", *lines])


def _ranks(plan: dict[str, Any]) -> list[int]:
    return sorted({*SHOWN_RANKS, plan["options"]["gpus"]})


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _wrapped(text: str, mark: str = "") -> list[str]:
    indent = "  " + " " * len(mark)
    return textwrap.wrap(text, WIDTH, initial_indent="  " + mark, subsequent_indent=indent)


def _ranges(numbers: Sequence[int]) -> str:
    """`0-4, 7` for 0 1 2 3 4 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} B" if count >= 1e8 else f"{count / 1e6:.3f} M"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def _card(cards: Sequence[int]) -> str:
    return str(min(cards)) if cards else "-"


def _flop(value: float) -> str:
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if value >= unit:
            return f"{value / unit:.3g} {prefix}FLOP"
    return f"{value / 1e9:.3g} GFLOP"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
