"""`plast plan`: known counts, its limits of time and memory, what it recommends, what it assumes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from launcher.commands.plan import run_plan
from launcher.plan.estimates import EstimatingTokenizer
from launcher.plan.page import WIDTH, plan_page
from launcher.plan.plan import PlanOptions, layers_to_train, make_plan, read_options
from launcher.plan.resources import recommend
from launcher.plan.work import TrainingWork, training_steps
from plast_train.config import SelectionConfig, load_config
from plast_train.data.questions import Record
from plast_train.data.sampling import plan_training
from plast_train.data.token_tree import Key, TokenSequence
from plast_train.errors import UserError
from plast_train.lvlm.architectures import count_parameters, read_architecture

ORIGINAL_7B = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava_llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
}


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


def trained_of(folder: Path, layers: Sequence[int], modules: str = "all") -> int:
    return count_parameters(read_architecture(folder, ""), layers, modules)[1]


def test_real_data_and_tokenizer_leave_nothing_assumed(
    shared: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        f"model.path={tiny_folder}",
        f"data.questions=[{shared / 'data' / 'image_questions.jsonl'}]",
        "data.languages=[en,zh,pt,ar,tr,ru]",
        "selection.strategy=layers",
        "selection.layers=[0,3]",
        "train.validation_records=2",
        "train.deepspeed=zero1",
        "plan.gpus=2",
    ]
    assert run_plan("tiny", overrides, as_json=True) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["assumptions"] == [] and plan["data"]["audit"]["records"] == 12
    assert plan["training"]["records"] == 10 and plan["training"]["validation_records"] == 2
    assert plan["parameters"]["trained"] == trained_of(tiny_folder, [0, 3])
    assert max(map(len, plan_page(plan).splitlines())) <= WIDTH


def test_an_original_checkpoint_is_planned_like_its_converted_form(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL_7B))
    assert trained_of(tmp_path, range(5)) == 1_011_916_800
    config = load_config("llava15_7b", [f"model.path={tmp_path}"])
    assert make_plan("llava15_7b", config, PlanOptions())["parameters"]["total"] == 7_063_427_072


def test_modules_change_what_is_trained(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL_7B))
    layer = {modules: trained_of(tmp_path, [0], modules) for modules in ("all", "ffn", "attention")}
    assert layer["ffn"] == 3 * 4096 * 11008 and layer["attention"] == 4 * 4096**2
    assert layer["all"] == layer["ffn"] + layer["attention"] + 2 * 4096


def selection(**values: Any) -> SelectionConfig:
    return SelectionConfig.model_validate(values)


def test_layers_are_assumed_only_where_statistics_decide() -> None:
    assert layers_to_train(selection(strategy="layers", layers=[7, 2]), 8) == ([2, 7], None)
    assert layers_to_train(selection(strategy="middle", k=2), 8) == ([3, 4], None)
    assert layers_to_train(selection(strategy="deepest", k=2), 8) == ([6, 7], None)
    assert layers_to_train(selection(strategy="all"), 3) == ([0, 1, 2], None)
    for values in ({"strategy": "msd"}, {"strategy": "random", "k": 2}):
        assert layers_to_train(selection(**values), 8)[1] is not None


@pytest.mark.parametrize(
    "overrides",
    [
        ["plan.mfu=2"],
        ["plan.gpus=none"],
        ["plan.gpu=8"],
        ["plan.gpus"],
        ["model.path=/nowhere"],
        ["model.path=llava-hf/llava-1.5-7b"],
        ["selection.strategy=layers", "selection.layers=[32]"],
        ["selection.strategy=deepest", "selection.k=33"],
        ["train.deepspeed=zero9"],
    ],
)
def test_what_the_user_can_mend(overrides: list[str]) -> None:
    with pytest.raises(UserError):
        run_plan("llava15_7b", overrides, as_json=True)


def test_options_are_read_from_the_command_line() -> None:
    options = read_options(["plan.gpus=2", "plan.mfu=0.5"])
    assert (options.gpus, options.mfu, options.gpu_memory) == (2, 0.5, 80)


def test_defective_data_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "1", "image": null, "questions": {"pt": "Quem?"}}\n')
    with pytest.raises(UserError, match="line 1"):
        run_plan("llava15_7b", [f"data.questions=[{bad}]"], as_json=True)


def test_samples_that_do_not_fit_a_row_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.tokens_per_row"):
        run_plan("llava15_7b", ["train.tokens_per_row=600"], as_json=True)


@pytest.mark.parametrize(("batch", "epochs"), [(4, 1.0), (6, 2.5), (100, 1.0)])
def test_steps_are_counted_as_the_run_plans_them(batch: int, epochs: float) -> None:
    languages = ["en", "pt", "zh"]
    config = load_config(
        "tiny",
        [
            f"data.languages=[{','.join(languages)}]",
            f"train.global_batch={batch}",
            f"train.epochs={epochs}",
            "train.max_steps=null",
        ],
    )
    records = [Record(str(n), {}, "image.jpg" if n % 3 else None, None, "") for n in range(11)]
    sequences = [
        [TokenSequence.of(Key(n, k), (1, 2, n, k), (0, 1), 1, record.image) for k in (1, 2)]
        for n, record in enumerate(records)
    ]
    planned = plan_training(sequences, batch, 100, 0, epochs, None)
    assert training_steps(config, records) == len(planned.steps)


def test_estimated_tokens_are_near_real_ones(shared: Path) -> None:
    import sentencepiece

    real = sentencepiece.SentencePieceProcessor(
        model_file=str(shared / "data" / "tokenizer" / "tokenizer.model")
    )
    estimate = EstimatingTokenizer(32000)
    counts: dict[str, list[int]] = {}
    for line in (shared / "data" / "image_questions.jsonl").read_text().splitlines():
        for language, question in json.loads(line)["questions"].items():
            pair = counts.setdefault(language, [0, 0])
            pair[0] += len(estimate([question])["input_ids"][0]) - 1
            pair[1] += len(real.encode(question))
    assert len(counts) == 6
    for language, (estimated, exact) in counts.items():
        assert 0.75 < estimated / exact < 1.25, language


def test_the_estimate_keeps_the_image_and_the_text_s_places() -> None:
    text = "USER: <image>\nWhere is it? ASSISTANT: There</s>"
    encoded = EstimatingTokenizer(32000)([text])
    (ids,), (offsets,) = encoded["input_ids"], encoded["offset_mapping"]
    assert ids.count(32000) == 1
    places = [text[a:b] for a, b in offsets]
    assert "".join(places) == text and places[ids.index(32000)].strip() == "<image>"
