"""The typed config tree: a recipe or YAML file, plus `section.key=value` overrides.

Everything a run depends on is here and is checked before any rank starts. An unknown key is refused with the
nearest known one; a wrong value is reported with its file and line. The descriptions make docs/options.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from plast_train.errors import UserError, nearest


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    path: str = Field(
        description="the base model: a folder in Hugging Face's or the original LLaVA's layout, a name on "
        "the hub, or `tiny`, the embedded model"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="precision of the weights that the model computes with"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model; only for models you trust"
    )


class DataConfig(Section):
    questions: list[str] = Field(
        min_length=1,
        description="files of parallel questions, or `hf:NAME` for a Hugging Face dataset; "
        "`LANG=path` is one language's file, paired with the others by id",
    )
    languages: list[str] = Field(
        min_length=2, description="BCP 47 codes of the languages to compare; `en` must be among them"
    )
    image_root: str | None = Field(
        None, description="folder that image paths are relative to; default: the question file's folder"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="which column of a Hugging Face dataset holds a field, e.g. {answer: label}",
    )
    max_bad_fraction: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="share of defective records to leave out; with more the run is refused",
    )


class ProbeConfig(Section):
    records: int = Field(
        300,
        ge=1,
        description="records whose neurons are recorded, drawn with the seed; all if there are fewer",
    )
    position: Literal["last", "text"] = Field(
        "last",
        description="at which tokens a neuron counts as active: the prompt's last, or the question's text",
    )
    tokens_per_row: int = Field(
        4096,
        ge=64,
        description="tokens of a packed row while activations are recorded; more needs more memory",
    )


class SelectionConfig(Section):
    strategy: Literal["msd", "layers", "top_k", "random", "shallowest", "middle", "deepest", "all"] = Field(
        "msd",
        description="how layers are chosen: by the paper's rule (`msd`), as listed in `layers`, the `k` of "
        "highest MSD (`top_k`), `k` at random or from one end or the middle, or all",
    )
    layers: list[int] = Field(
        default_factory=list, description="0-based numbers of the layers, with strategy `layers` only"
    )
    k: int | None = Field(
        None, ge=1, description="number of layers, with `top_k`, `random`, `shallowest`, `middle`, `deepest`"
    )
    threshold: Literal["candidates", "all_layers"] = Field(
        "candidates", description="with `msd`: the layers whose mean MSD a candidate must exceed"
    )
    reference: Literal["mean", "english"] = Field(
        "mean", description="what the MSD measures deviations from: the languages' mean, or English"
    )
    overlap: Literal["english", "jaccard"] = Field(
        "english",
        description="overlap with English: as a share of English's active neurons, or the Jaccard index",
    )
    tolerance: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="candidates are the layers before the overlap curve comes this close to its plateau",
    )
    modules: Literal["all", "ffn", "attention"] = Field(
        "all", description="which weights of the selected layers are trained"
    )

    @model_validator(mode="after")
    def options_fit_the_strategy(self) -> SelectionConfig:
        takes_k = {"top_k", "random", "shallowest", "middle", "deepest"}
        if self.strategy in takes_k and self.k is None:
            raise ValueError(f"strategy '{self.strategy}' needs selection.k, the number of layers")
        if self.strategy not in takes_k and self.k is not None:
            raise ValueError(f"selection.k has no meaning with strategy '{self.strategy}'; remove it")
        if (self.strategy == "layers") != bool(self.layers):
            raise ValueError("selection.layers and strategy 'layers' go together: give both or neither")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"selection.layers names a layer twice: {self.layers}")
        return self


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainConfig(Section):
    method: Literal["layers", "lora", "full"] = Field(
        "layers",
        description="what is trained: the selected layers' weights, LoRA adapters beside their linear "
        "layers, or everything but the vision tower",
    )
    lora_rank: int | None = Field(
        None, ge=1, description="with method `lora`: rank r of the adapters (Hu et al. 2021)"
    )
    lora_alpha: float | None = Field(
        None,
        gt=0.0,
        description="with method `lora`: adapters are scaled by alpha / rank; default: twice the rank",
    )
    deepspeed: str = Field("zero2", description="a name in ds_configs/ or the path of a DeepSpeed JSON")
    epochs: float = Field(1.0, gt=0.0, description="passes over the training pairs")
    max_steps: int | None = Field(
        None, ge=1, description="last step of the training; default: `epochs` decides"
    )
    global_batch: int = Field(
        128, ge=1, description="question-translation pairs per optimizer step, over all ranks"
    )
    learning_rate: float = Field(
        2e-5, gt=0.0, description="highest learning rate, reached after the warm-up; then a cosine to 0"
    )
    warmup_fraction: float = Field(
        0.03, ge=0.0, le=1.0, description="fraction of the steps in which the learning rate rises linearly"
    )
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW's decoupled weight decay")
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="AdamW's decay rates of the gradient's mean and of its square's"
    )
    gradient_clipping: float = Field(
        1.0, ge=0.0, description="gradients of a larger norm are scaled down to it; 0 switches clipping off"
    )
    tokens_per_row: int = Field(
        4096, ge=64, description="tokens of a packed row in training; more needs more memory"
    )
    image_in_training: bool = Field(
        True, description="show the image with the question to translate, where the record has one"
    )
    instruction: str = Field(
        "Translate the following question from {language} to English. {question}",
        description="the prompt; {language} and {question} are filled in",
    )
    recompute: bool = Field(
        False, description="save memory by recomputing activations of the layers that carry a gradient"
    )
    validation_records: int = Field(
        64, ge=0, description="records held back from training for the validation loss"
    )
    validate_every: int = Field(100, ge=1, description="steps between two validation losses")

    @model_validator(mode="after")
    def instruction_has_its_fields(self) -> TrainConfig:
        if "{question}" not in self.instruction:
            raise ValueError("train.instruction must contain {question}")
        return self

    @model_validator(mode="after")
    def lora_options_fit_the_method(self) -> TrainConfig:
        if self.method == "lora" and self.lora_rank is None:
            raise ValueError("train.method 'lora' needs train.lora_rank, e.g. 16")
        if self.method != "lora" and (self.lora_rank is not None or self.lora_alpha is not None):
            raise ValueError(
                f"train.lora_rank and train.lora_alpha have no meaning with train.method '{self.method}'; "
                "remove them, or give train.method=lora"
            )
        return self

    @property
    def lora_scale(self) -> float:
        """The factor of the adapters' product, α / r; 2 by default."""
        assert self.lora_rank is not None
        return 2.0 if self.lora_alpha is None else self.lora_alpha / self.lora_rank


class SamplingConfig(Section):
    """Which question-translation pairs are trained on, and how often; see data/mixing.py."""

    languages: Literal["as_given", "temperature", "balanced", "overlap"] = Field(
        "as_given",
        description="each language's share of the pairs: as in the data, flattened by `temperature`, equal, "
        "or larger the less its neurons overlap with English",
    )
    temperature: float | None = Field(
        None, ge=1.0, description="T, with `languages: temperature`: shares follow pairs to the power of 1/T"
    )
    language_weights: dict[str, float] = Field(
        default_factory=dict, description="factors of the languages' shares, e.g. {sw: 2}"
    )
    per_template: int | None = Field(
        None,
        ge=1,
        description="at most this many records whose English questions differ only in single words",
    )
    keep: float = Field(1.0, gt=0.0, le=1.0, description="fraction of each language's pairs to train on")
    keep_by: Literal["hardest", "easiest"] | None = Field(
        None,
        description="with `keep` below 1: keep the pairs of highest or of lowest loss under the base model",
    )

    @model_validator(mode="after")
    def options_fit_each_other(self) -> SamplingConfig:
        if (self.languages == "temperature") != (self.temperature is not None):
            raise ValueError(
                "sampling.temperature and sampling.languages 'temperature' go together: give both or neither"
            )
        if (self.keep < 1.0) != (self.keep_by is not None):
            raise ValueError("sampling.keep below 1 and sampling.keep_by go together: give both or neither")
        wrong = {name: weight for name, weight in self.language_weights.items() if not weight > 0.0}
        if wrong:
            raise ValueError(
                f"sampling.language_weights must be above 0, but has {wrong}; to leave a language out, take "
                "it out of data.languages"
            )
        return self


class CheckpointConfig(Section):
    every_steps: int = Field(100, ge=1, description="training steps between two checkpoints")
    every_minutes: float = Field(
        15.0, gt=0.0, description="minutes after which a checkpoint is written earlier than that"
    )
    keep: int = Field(2, ge=1, description="how many of the newest checkpoints stay on the disk")


class EvaluateConfig(Section):
    benchmarks: list[str] = Field(
        default_factory=list,
        description="files to score the models on: NAME_LANG.tsv, .parquet, .json or a folder; NAME.jsonl",
    )
    image_root: str | None = Field(
        None, description="folder that benchmarks' image paths are relative to; default: the file's folder"
    )
    matching: Literal["parrot2024", "vlmevalkit2026"] = Field(
        "parrot2024",
        description="rule by which a reply is matched to an option in the tables; both are scored",
    )
    localised_instruction: bool = Field(
        False, description="ask for the option's letter in the benchmark's language instead of in English"
    )
    batch_size: int = Field(16, ge=1, description="replies that a rank generates at once")
    max_new_tokens: int = Field(16, ge=1, description="longest reply, in tokens")


AnalysisName = Literal["neurons", "stability", "representation", "knockout", "attention"]


class AnalyseConfig(Section):
    analyses: list[AnalysisName] = Field(
        default_factory=lambda: list(get_args(AnalysisName)),
        description="analyses to make; an empty list makes none",
    )
    records: int = Field(100, ge=2, description="probed records for `stability` and `representation`")
    items: int = Field(
        100, ge=1, description="items of each benchmark for `knockout`, the same in every language"
    )
    tokens_per_row: int = Field(4096, ge=64, description="tokens of a packed row in these three analyses")
    attention_records: int = Field(
        8, ge=1, description="records with an image for `attention`, from those held back if there are any"
    )
    attention_layer: int | None = Field(
        None, ge=0, description="0-based layer whose attention maps are drawn; default: the middle"
    )
    pictures: int = Field(4, ge=0, description="number of attention maps to draw")
    neuron_share: float = Field(
        0.01,
        gt=0.0,
        le=1.0,
        description="fraction of all neurons, those of lowest entropy over languages, that is specific",
    )
    neuron_percentile: float = Field(
        0.95,
        gt=0.0,
        lt=1.0,
        description="quantile of all activation probabilities that a language's own neurons must exceed",
    )

    def map_layer(self, num_layers: int) -> int:
        """The layer whose maps are drawn; by default the middle one. The last layer has no attention map."""
        if self.attention_layer is not None:
            return self.attention_layer
        return min(num_layers // 2, num_layers - 2)

    @model_validator(mode="after")
    def analyses_are_named_once(self) -> AnalyseConfig:
        if len(set(self.analyses)) != len(self.analyses):
            raise ValueError(f"analyse.analyses names an analysis twice: {self.analyses}")
        return self


class AblateConfig(Section):
    """What `plast ablate` runs. Values are given by dotted key, as on the command line."""

    seeds: int = Field(
        3, ge=1, description="number of seeds each variant is trained with, from `seed` upwards"
    )
    variants: list[str] = Field(
        default_factory=list, description="names of the variants; default: all that apply"
    )
    every: dict[str, Any] = Field(default_factory=dict, description="settings of every run, by section.key")
    only: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="settings of single variants' runs, by the variant's name and section.key",
    )


class Config(Section):
    seed: int = Field(0, ge=0, description="of every random choice: probed records, shuffling, adapters")
    model: ModelConfig
    data: DataConfig
    probe: ProbeConfig = ProbeConfig()
    selection: SelectionConfig = SelectionConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyse: AnalyseConfig = AnalyseConfig()
    ablate: AblateConfig = AblateConfig()
    watchdog_minutes: float = Field(
        30.0, gt=0.0, description="a run is ended when none of its ranks has made progress for this long"
    )

    @model_validator(mode="after")
    def languages_are_sound(self) -> Config:
        languages = self.data.languages
        if "en" not in languages:
            raise ValueError("data.languages must contain 'en': every statistic is relative to English")
        if len({language.lower() for language in languages}) != len(languages):
            raise ValueError(f"data.languages names a language twice: {languages}")
        return self

    @model_validator(mode="after")
    def weights_are_of_translated_languages(self) -> Config:
        others = [language for language in self.data.languages if language != "en"]
        for language in self.sampling.language_weights:
            if language not in others:
                raise ValueError(
                    f"sampling.language_weights names '{language}', but questions are translated from "
                    f"{', '.join(others)}"
                )
        return self

    @model_validator(mode="after")
    def full_training_trains_every_layer(self) -> Config:
        selected = (self.selection.strategy, self.selection.modules)
        if self.train.method == "full" and selected != ("all", "all"):
            raise ValueError(
                "train.method 'full' trains every layer whole, but selection.strategy is "
                f"'{selected[0]}' and selection.modules '{selected[1]}'; add selection.strategy=all "
                "selection.modules=all"
            )
        return self


class EvaluationConfig(Section):
    """The two sections of a config that evaluating a model alone depends on."""

    model: ModelConfig
    evaluate: EvaluateConfig = EvaluateConfig()


def override_evaluation(config: EvaluationConfig, overrides: Sequence[str]) -> EvaluationConfig:
    """Raises UserError for an override of another section, an unknown key, a wrong value."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    lines: dict[str, str] = {}
    for override in overrides:
        _apply(tree, lines, override)
    try:
        return EvaluationConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, "command line", lines) for e in error.errors())) from None


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("plast_train") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def options_of(cls: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each value's dotted key, e.g. `train.max_steps`, and its pydantic field, section by section."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from options_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe by name, or a YAML file by path, and applies `section.key=value` overrides.

    Raises:
        UserError: unknown recipe, unreadable or invalid YAML, unknown key, wrong value, contradiction.
    """
    source, text = _read(recipe)
    tree, lines = _parse(source, text)
    if any(override.startswith("selection.strategy=") for override in overrides):
        # The recipe's number of layers, or its layers, belong to the strategy that is being replaced.
        for key in ("k", "layers"):
            tree.get("selection", {}).pop(key, None)
    for override in overrides:
        _apply(tree, lines, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, source, lines) for e in error.errors())) from None


def with_values(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """The config with other values, given by dotted key.

    Raises:
        UserError: unknown key, wrong value or contradiction; `source` names where the values come from.
    """
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        *sections, leaf = key.split(".")
        inner: dict[str, Any] = tree
        for section in sections:
            found = inner.get(section)
            inner = found if isinstance(found, dict) else {}
        if leaf not in inner:
            raise UserError(f"{source}: unknown key '{key}'{nearest(leaf, _keys(sections))}")
        inner[leaf] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(_explain(e, source, {}) for e in error.errors())) from None


def dump_config(config: Config) -> str:
    tree: dict[str, Any] = config.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _read(recipe: str) -> tuple[str, str]:
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"}:
        try:
            return str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); give a recipe name or a YAML file") from None
    if recipe not in recipes():
        hint = nearest(recipe, recipes())
        raise UserError(f"unknown recipe '{recipe}'{hint} (recipes: {', '.join(recipes())}; or a .yaml file)")
    text = (resources.files("plast_train") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    return f"recipe {recipe}", text


def _parse(source: str, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree and, for messages, the file and line of each dotted key."""
    try:
        tree = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(node, yaml.MappingNode):
        raise UserError(f"{source}: must be a mapping of sections")
    lines: dict[str, str] = {}

    def visit(mapping: yaml.MappingNode, prefix: str) -> None:
        for key, value in mapping.value:
            name = prefix + str(key.value)
            lines[name] = f"{source}, line {key.start_mark.line + 1}"
            if isinstance(value, yaml.MappingNode):
                visit(value, name + ".")

    visit(node, "")
    return _with_sections(tree, source, lines), lines


def _with_sections(tree: dict[str, Any], source: str, lines: dict[str, str]) -> dict[str, Any]:
    """The tree with `{}` for a section whose keys are all commented out, which YAML reads as null.

    Raises:
        UserError: a value is written where a section belongs.
    """
    sections = [name for name in tree if _keys([name])]
    for name in sections:
        if tree[name] is not None and not isinstance(tree[name], dict):
            raise UserError(
                f"{lines.get(name, source)}: '{name}' is {tree[name]!r:.60} where a section belongs; write "
                f"its keys below it, indented ({', '.join(_keys([name]))})"
            )
    return tree | {name: {} for name in sections if tree[name] is None}


def _apply(tree: dict[str, Any], lines: dict[str, str], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not an override; write section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {key}: '{text}' is not a YAML value: {error}") from None
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {key}: '{section}' is not a section")
    tree[leaf] = value
    lines[key] = f"command line, {override}"


def _explain(error: Any, source: str, lines: dict[str, str]) -> str:
    """One line for one pydantic error: where, which key, which value, what to do."""
    parts = [str(p) for p in error["loc"]]
    key = ".".join(parts)
    where = next(
        (lines[k] for k in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if k in lines), source
    )
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key '{key}'{nearest(parts[-1], _keys(parts[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: '{key}' is missing; add it"
    message = error["msg"].removeprefix("Value error, ")
    value = f" (got {error['input']!r})" if not isinstance(error["input"], dict | BaseModel) else ""
    return f"{where}: {key + ': ' if key else ''}{message}{value}"


def _keys(sections: Sequence[str]) -> list[str]:
    """The keys that exist below a section, from the types themselves."""
    cls: type[BaseModel] = Config
    for name in sections:
        field = cls.model_fields.get(name)
        if field is None or not (
            isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        ):
            return []
        cls = field.annotation
    return list(cls.model_fields)
