"""Collecting on real ranks: the same bytes for any number of them, and equal to plain transformers."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.commands import plast, start_plast, wait_for

from plast_train.data.images import load_image
from plast_train.lvlm.families import LLAVA_CHAT

LANGUAGES = ["en", "pt", "zh", "ru"]
NEAR_ZERO = 1e-5
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven records, most with an image, some without."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(11):
        colour = COLOURS[number % 6]
        image = None if number % 4 == 3 else f"{number}.png"
        if image:
            Image.new("RGB", (50 + number, 40), colour).save(folder / image)
        questions = {
            "en": f"Is there a {colour} circle in the picture?" + " Where?" * (number % 3),
            # One with a line separator that is none to JSON.
            "pt": f"Há um círculo {number} na imagem?" + "\u2028" * (number == 5),
            "zh": f"图片里有第{number}个圆形吗?",
            "ru": f"Есть ли на картинке круг номер {number}?",
        }
        lines.append(json.dumps({"id": f"q{number}", "image": image, "questions": questions}))
    path = folder / "questions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def arguments(tiny_folder: Path, questions: Path, out: Path) -> list[str]:
    return [
        *("collect", "tiny", "--out", str(out)),
        *(
            f"model.path={tiny_folder}",
            f"data.questions=[{questions}]",
            f"data.languages=[{','.join(LANGUAGES)}]",
        ),
        *("evaluate.benchmarks=[]", "probe.tokens_per_row=700", "train.validation_records=2"),
    ]


@pytest.fixture(scope="module")
def statistics(tiny_folder: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    plast(*arguments(tiny_folder, questions, out), "--nproc", "1")
    return out / "activations" / "statistics.safetensors"


@pytest.mark.parametrize(
    ("ranks", "deepspeed"),
    [("2", "zero2"), ("3", "zero2"), pytest.param("2", "zero3", marks=pytest.mark.slow)],
    ids=lambda value: value,
)
def test_the_file_is_the_same_to_the_byte(
    ranks: str, deepspeed: str, tiny_folder: Path, questions: Path, statistics: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    plast(*arguments(tiny_folder, questions, out), "--nproc", ranks, f"train.deepspeed={deepspeed}")
    assert (out / "activations" / "statistics.safetensors").read_bytes() == statistics.read_bytes()


def test_equal_to_plain_transformers(tiny_folder: Path, questions: Path, statistics: Path) -> None:
    """One question at a time, unpacked, through the processor. Neurons whose gate lies within 1e-5 of zero
    may differ; they are counted and must be very few."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_folder)
    tables = load_file(statistics)
    records = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    layers = model.model.language_model.layers
    gates: list[torch.Tensor] = []
    for layer in layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _m, _i, out: gates.append(out[0]))
    expected = {name: torch.zeros_like(table) for name, table in tables.items() if name != "record_index"}
    undecided = total = 0
    assert tables["record_index"].tolist() == list(range(len(records)))
    for s, record in enumerate(records):
        fires_in = {}
        for g, language in enumerate(LANGUAGES):
            question = record["questions"][language]
            prompt = LLAVA_CHAT.prompt(question, record["image"] is not None)
            images = [load_image(questions.parent / record["image"])] if record["image"] else None
            inputs = processor(text=prompt, images=images, return_tensors="pt")
            gates.clear()
            with torch.no_grad():
                model(**inputs)
            gate = torch.stack(gates)  # [layers, tokens, neurons]
            fires = torch.nn.functional.silu(gate) > 0
            undecided += int((gate[:, -1].abs() < NEAR_ZERO).sum())
            total += gate[:, -1].numel()
            fires_in[language] = fires[:, -1]
            expected["active"][s, :, g] = fires[:, -1].sum(-1)
            expected["neuron_counts"][g] += fires[:, -1]
            # The question is what stands between the common head and the last turn's words.
            tail = len(processor.tokenizer(" ASSISTANT:", add_special_tokens=False)["input_ids"])
            first = gate.shape[1] - tail - question_tokens(processor.tokenizer, prompt, question)
            text = fires[:, first : gate.shape[1] - tail]
            expected["token_counts"][g] += text.sum(1)
            expected["tokens"][g] += text.shape[1]
        for g, language in enumerate(LANGUAGES):
            both = fires_in[language] & fires_in["en"]
            expected["shared_with_english"][s, :, g] = both.sum(-1)
    assert undecided <= 1e-3 * total, f"{undecided} of {total} gates lie within {NEAR_ZERO} of zero"
    print(f"{undecided} of {total} gates lie within {NEAR_ZERO} of zero")
    assert torch.equal(tables["tokens"], expected["tokens"])
    for name, table in expected.items():
        assert (tables[name].long() - table.long()).abs().sum() <= 2 * undecided, name


def question_tokens(tokenizer, prompt: str, question: str) -> int:
    """Tokens that overlap the question's text, from the text of the tokens themselves."""
    start = prompt.rindex(question)
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return sum(a < start + len(question) and b > start for a, b in offsets)


@pytest.mark.slow
def test_a_stopped_collection_goes_on_from_its_parts(
    tiny_folder: Path, questions: Path, statistics: Path, tmp_path: Path
) -> None:
    """Stopped after its first rows on one rank, gone on with on two; a torn part is counted again."""
    out = tmp_path / "run"
    process = start_plast(*arguments(tiny_folder, questions, out))
    wait_for(out / "logs" / "rank-0.log", "loading ")  # collecting has begun
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 1
    parts = out / "activations" / "parts"
    (kept,) = parts.iterdir()
    with safe_open(kept, "pt") as part:
        assert len(part.get_tensor("rows")) == 1
    assert not (out / "activations" / "statistics.safetensors").exists()
    (parts / "rows-from-000001.safetensors").write_bytes(b"torn")
    (parts / ".rows-from-000002.safetensors.1.tmp").write_bytes(b"left by a kill")
    plast(*arguments(tiny_folder, questions, out), "--nproc", "2")
    assert (out / "activations" / "statistics.safetensors").read_bytes() == statistics.read_bytes()
    assert not parts.exists()
    log = (out / "logs" / "rank-0.log").read_text(encoding="utf-8")
    assert "rows-from-000001.safetensors: unreadable" in log
