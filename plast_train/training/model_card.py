"""The README.md of an exported model: what it was made from, how, and with which versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plast_train.config import Config
from plast_train.lvlm.freezing import what_is_trained
from plast_train.run_folder import RunFolder, read_json


def model_card(config: Config, run: RunFolder, manifest: Mapping[str, Any]) -> str:
    """Markdown with the front matter of a model card. `manifest` is that of the exported checkpoint.

    Folders of this machine are named by their last part alone; a card is read elsewhere.
    """
    selection, versions = read_json(run.selection), read_json(run.environment)["packages"]
    base = Path(config.model.path).name if Path(config.model.path).is_dir() else config.model.path
    data, train = config.data, config.train
    front = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": base,
        "language": data.languages,
        "tags": ["plast", "multilingual"],
    }
    facts = {
        "Base model": f"{base} (SHA-256 of its files {manifest['base'][:16]}…)",
        "Trained": f"{what_is_trained(train, selection['selected_layers'], selection['modules'])}; decoder "
        f"layers counted from 0, chosen by: {selection['strategy']}",
        "Trained parameters": f"{selection['trainable_parameters']:,} of {selection['total_parameters']:,} "
        f"({selection['trainable_fraction']:.2%})",
        "Languages": ", ".join(data.languages),
        "Questions": ", ".join(Path(path).name for path in data.questions),
        "Instruction": train.instruction,
        "Image in training": train.image_in_training,
        "Optimizer steps": manifest["step"],
        "Pairs a step": train.global_batch,
        "Learning rate": f"{train.learning_rate:g}, cosine, warm-up {train.warmup_fraction:g}",
        "Compute dtype": f"{config.model.dtype}, float32 master weights",
        "Seed": config.seed,
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())
    changed = {
        "layers": "the decoder layers whose neurons differ most between languages were\nfine-tuned",
        "lora": "LoRA adapters on the decoder layers named below were trained, and merged into them,",
        "full": "for comparison, everything but the vision tower was fine-tuned",
    }[train.method]
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---

# {_cell(base)}, fine-tuned on question translation

Made by PLAST (arXiv 2508.18381): {changed} to translate questions into English. Every other weight equals the
base model's to the bit.

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder")
processor = AutoProcessor.from_pretrained("this folder")
```

The licence of the base model holds for this model too.
"""


def _cell(value: object) -> str:
    """Text that cannot break out of a Markdown table's cell."""
    text = str(value).replace("\n", " ")
    for character in "\\`*_|<>[]":
        text = text.replace(character, "\\" + character)
    return text
