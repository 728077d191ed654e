"""`plast plan`: known counts, its limits of time and memory, what it recommends, what it assumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.plan import run_plan
from launcher.plan.estimates import EstimatingTokenizer
from launcher.plan.page import WIDTH, plan_page
from launcher.plan.plan import PlanOptions, layers_to_train, make_plan, read_options
from launcher.plan.work import training_steps
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
