"""`plast plan` as a command: known counts, its limits of time and memory, what it recommends."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from support.paths import ROOT

from launcher.plan.page import WIDTH, plan_page
from launcher.plan.resources import recommend
from launcher.plan.work import TrainingWork


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """The printed plan of both LLaVA recipes, each with the resources its own process used."""
    folder = tmp_path_factory.mktemp("plans")
    found = {}
    for recipe in ("llava15_7b", "llava15_13b"):
        out = folder / recipe
        with out.open("w") as stdout:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher.cli", "plan", recipe, "--json"],
                stdout=stdout,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
            _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        found[recipe] = json.loads(out.read_text()), used
    return found


def test_five_of_32_layers_are_14_33_percent_of_7_063_billion(plans: Any) -> None:
    plan, _ = plans["llava15_7b"]
    assert plan["parameters"]["total"] == 7_063_427_072
    assert plan["parameters"]["trained"] == 5 * 202_383_360
    assert f"{plan['parameters']['share']:.2%}" == "14.33%"
    assert plan["selection"]["layers"] == [0, 1, 2, 3, 4] and plan["selection"]["assumed"]


def test_six_of_40_layers_of_the_13b(plans: Any) -> None:
    plan, _ = plans["llava15_13b"]
    assert plan["selection"]["layers"] == [0, 1, 2, 3, 4, 5]
    assert plan["parameters"] == {
        "total": 13_351_494_656,
        "trained": 1_903_226_880,
        "share": 1_903_226_880 / 13_351_494_656,
    }


def test_a_plan_takes_little(plans: Any) -> None:
    for _, used in plans.values():
        # Processor time, which on a busy machine is what an idle one would take of the clock.
        assert used.ru_utime + used.ru_stime < 20
        assert used.ru_maxrss * 1024 < 2e9


def test_memory_falls_with_stage_and_ranks_and_says_what_fits(plans: Any) -> None:
    plan, _ = plans["llava15_7b"]
    peaks = {(e["deepspeed"], e["ranks"]): e["memory"]["peak"] for e in plan["settings"]}
    assert {name for name, _ in peaks} == {"zero1", "zero2", "zero3", "zero3_offload"}
    assert peaks["zero1", 8] > peaks["zero2", 8] > peaks["zero3", 8] > peaks["zero3_offload", 8]
    for entry in plan["settings"]:
        assert entry["memory_with_recompute"]["peak"] <= entry["memory"]["peak"]
        for card in (24, 40, 80, 141):
            assert (card in entry["cards"]) == (entry["memory"]["peak"] <= 0.95 * card * 2**30)


def test_flops_and_time_follow_from_each_other(plans: Any) -> None:
    plan, _ = plans["llava15_7b"]
    training = plan["training"]
    one = next(e for e in plan["time"] if e["ranks"] == 1)
    assert one["seconds_per_step"] == pytest.approx(training["useful_flops"] / (0.4 * 989e12))
    assert one["idle_share"] == 0
    # A token of a row costs about what the account without them says, and attention and images on top.
    assert 27e9 < training["useful_flops"] / training["tokens"] < 31e9
    assert 1.3 < training["all_layers_flops"] / training["useful_flops"] < 1.45


def test_sharing_prefixes_saves_most_of_the_image_tokens(plans: Any) -> None:
    plan, _ = plans["llava15_7b"]
    assert 5 < plan["collecting"]["prefix_sharing"] < 6  # six languages, 576 image tokens
    assert 3.5 < plan["training"]["prefix_sharing"] < 5


def test_the_page_is_narrow_and_names_what_was_assumed(plans: Any) -> None:
    for plan, _ in plans.values():
        page = plan_page(plan)
        assert max(map(len, page.splitlines())) <= WIDTH
        for text in (
            "14.33%" if plan["recipe"] == "llava15_7b" else "14.25%",
            "40% MFU",
            "989 TFLOP/s",
            "plan.records",
        ):
            assert text in page


@pytest.mark.parametrize(
    ("recipe", "gpus", "gigabytes", "deepspeed", "recompute", "not_this", "because"),
    [
        ("llava15_7b", 8, 80, "zero2", False, "zero1", "sends as much and takes"),
        ("llava15_7b", 4, 80, "zero1", False, "zero2", "sends"),
        ("llava15_7b", 8, 24, "zero2", True, "zero3", "gathers the weights every micro-step"),
        ("llava15_7b", 2, 24, "zero3", True, "zero2", "even with recompute"),
        ("llava15_7b", 1, 24, "zero3_offload", False, "zero3", "even with recompute"),
        ("llava15_13b", 4, 40, "zero2", True, "zero3_offload", "from the host"),
        ("llava15_13b", 8, 24, "zero3", True, "zero1", "even with recompute"),
    ],
)
def test_what_is_recommended(
    plans: Any,
    recipe: str,
    gpus: int,
    gigabytes: float,
    deepspeed: str,
    recompute: bool,
    not_this: str,
    because: str,
) -> None:
    plan, _ = plans[recipe]
    work = {key: plan["training"][key] for key in TrainingWork.__dataclass_fields__}
    advice = recommend(plan["settings"], TrainingWork(**work), gpus, gigabytes)
    assert (advice["deepspeed"], advice["recompute"]) == (deepspeed, recompute)
    assert "GiB" in advice["why"]
    assert set(advice["why_not"]) == {"zero1", "zero2", "zero3", "zero3_offload"} - {deepspeed}
    assert because in advice["why_not"][not_this]


def test_nothing_is_recommended_that_does_not_fit(plans: Any) -> None:
    plan, _ = plans["llava15_7b"]
    work = {key: plan["training"][key] for key in TrainingWork.__dataclass_fields__}
    advice = recommend(plan["settings"], TrainingWork(**work), 1, 4)
    assert advice["deepspeed"] is None and "train.tokens_per_row" in advice["why"]
    page = copy.deepcopy(plan) | {"recommendation": advice}
    assert "nothing fits 4 GB" in plan_page(page)
