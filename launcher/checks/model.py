"""Whether the run fits its base model: layers, prompts, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plast_train.config import Config, SelectionConfig, TrainConfig
from plast_train.data.questions import Record
from plast_train.errors import UserError
from plast_train.lvlm.architectures import count_parameters, read_architecture
from plast_train.lvlm.families import family_of
from plast_train.lvlm.loading import load_text_side, make_prompter
from plast_train.neurons.strategies import fixed_layers, usual_number


class BaseModel:
    """What is known of the base without its weights; `config` includes transformers' defaults."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder = folder
        self.config = read_architecture(folder, "")
        self.num_layers: int = self.config["text_config"]["num_hidden_layers"]
        self.positions: int = self.config["text_config"]["max_position_embeddings"]
        family = family_of(self.config, str(folder))
        tokenizer, _ = load_text_side(folder, config.model.trust_remote_code)
        self.prompter = make_prompter(tokenizer, family, self.config, config.data.languages)


def trained_parameters(architecture: dict[str, Any], selection: SelectionConfig, train: TrainConfig) -> int:
    """How many parameters the selection trains; where a rule has yet to choose layers, of the usual number.

    Raises:
        UserError: the selection names a layer, or a number of layers, that the decoder does not have.
    """
    num_layers = architecture["text_config"]["num_hidden_layers"]
    layers = fixed_layers(selection, num_layers)
    if layers is None:
        layers = list(range(selection.k or usual_number(num_layers)))
    return count_parameters(architecture, layers, selection.modules, train)[1]


def usable_records(config: Config, base: BaseModel, records: list[Record]) -> list[Record]:
    """The records whose sequences the model can run, in order.

    Raises:
        UserError: more of them than `data.max_bad_fraction` cannot, or none is left to probe.
    """
    from plast_train.data.audit import check_sequences
    from plast_train.data.questions import complete

    prompter, numbers = base.prompter, range(len(records))
    kept = set(numbers)
    for section, tokens_per_row, groups in (
        ("probe", config.probe.tokens_per_row, prompter.probes(records, numbers)),
        ("train", config.train.tokens_per_row, prompter.translations(records, numbers, config.train)),
    ):
        kept &= set(
            check_sequences(
                groups,
                records,
                config.data,
                section=section,
                tokens_per_row=tokens_per_row,
                max_positions=base.positions,
                image_token_id=prompter.image_token,
                image_tokens=prompter.num_image_tokens,
            )
        )
    usable = [records[number] for number in sorted(kept)]
    if not complete(usable, config.data.languages):
        raise UserError(
            "data.questions: no record with a question in every language can be probed; correct the records "
            "left out above"
        )
    return usable


def check_validation(config: Config, records: list[Record]) -> None:
    """Raises UserError where holding records back would leave less than half of them to train on."""
    held_back = config.train.validation_records
    if 2 * held_back > len(records):
        raise UserError(
            f"train.validation_records={held_back} would leave {max(0, len(records) - held_back)} of "
            f"{len(records)} records to train on; give {len(records) // 2} or fewer, or more records"
        )


def check_benchmarks(config: Config, base: BaseModel) -> None:
    """Raises UserError for a benchmark or a row of one that cannot be evaluated."""
    from plast_train.scoring.questions import check_prompts
    from plast_train.tasks.registry import benchmarks_of

    benchmarks = benchmarks_of(config.evaluate)
    if benchmarks:
        limit, localised = config.evaluate.max_new_tokens, config.evaluate.localised_instruction
        check_prompts(benchmarks, base.prompter, base.positions, limit, localised)


def check_analyses(config: Config, base: BaseModel) -> None:
    """Raises UserError for a layer without attention maps."""
    layer = config.analyse.attention_layer
    if layer is not None and layer > base.num_layers - 2:
        raise UserError(
            f"analyse.attention_layer={layer}: layers 0 to {base.num_layers - 2} have attention maps; "
            "nothing reads the last layer's output at the image"
        )
