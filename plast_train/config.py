"""The typed config tree: a recipe or YAML file, plus `section.key=value` overrides.

Everything a run depends on is here, checked before any rank starts. Unknown keys are refused with the
nearest right name; a wrong value is named with its file and line.
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
        description="Hugging Face or original LLaVA folder, or a hub name; `tiny` is the embedded model"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="precision of weights and activations"
    )
    trust_remote_code: bool = Field(False, description="run Python code that the model's folder carries")


class DataConfig(Section):
    questions: list[str] = Field(min_length=1, description="question files; `LANG=path` pairs files by id")
    languages: list[str] = Field(min_length=2, description="BCP 47 codes; `en` must be among them")
    image_root: str | None = Field(
        None, description="folder that images are below; default: the question file's folder"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="field: column, for a Hugging Face dataset"
    )
    max_bad_fraction: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of records with defects up to which they are left out"
    )


class ProbeConfig(Section):
    records: int = Field(
        300, ge=1, description="records that are probed, drawn with the seed; all if there are fewer"
    )
    position: Literal["last", "text"] = Field(
        "last", description="read neurons at the last prompt position, or over all question-text positions"
    )
    tokens_per_row: int = Field(4096, ge=64, description="most tokens of a packed row")


class SelectionConfig(Section):
    strategy: Literal["msd", "layers", "top_k", "random", "shallowest", "middle", "deepest", "all"] = Field(
        "msd", description="rule that selects the layers"
    )
    layers: list[int] = Field(default_factory=list, description="with strategy `layers`: 0-based numbers")
    k: int | None = Field(
        None, ge=1, description="number of layers, with `top_k`, `random`, `shallowest`, `middle`, `deepest`"
    )
    threshold: Literal["candidates", "all_layers"] = Field(
        "candidates", description="layers whose mean MSD is the threshold of `msd`"
    )
    reference: Literal["mean", "english"] = Field(
        "mean", description="what the MSD deviates from: the mean of the languages, or English"
    )
    overlap: Literal["english", "jaccard"] = Field(
        "english", description="share of English's active neurons, or the Jaccard index"
    )
    tolerance: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="distance from its plateau at which the overlap curve has reached it",
    )
    modules: Literal["all", "ffn", "attention"] = Field(
        "all", description="part of the selected layers that is trained"
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
    lora_rank: int | None = Field(None, ge=1, description="with method `lora`: the rank r of Hu et al. 2021")
    lora_alpha: float | None = Field(
        None, gt=0.0, description="with method `lora`: adapters are scaled by alpha / rank; default: 2 × rank"
    )
    deepspeed: str = Field("zero2", description="a name in ds_configs/ or the path of a DeepSpeed JSON")
    epochs: float = Field(1.0, gt=0.0, description="passes over the pairs")
    max_steps: int | None = Field(None, ge=1, description="number of steps; default: `train.epochs` decides")
    global_batch: int = Field(128, ge=1, description="question-translation pairs per step")
    learning_rate: float = Field(2e-5, gt=0.0, description="peak of the cosine schedule")
    warmup_fraction: float = Field(
        0.03, ge=0.0, le=1.0, description="share of the steps over which the learning rate rises from 0"
    )
    weight_decay: float = Field(0.0, ge=0.0, description="of the optimizer, AdamW")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="of the optimizer, AdamW")
    gradient_clipping: float = Field(
        1.0, ge=0.0, description="largest norm of a step's gradient; 0 turns clipping off"
    )
    tokens_per_row: int = Field(4096, ge=64, description="most tokens of a packed row")
    image_in_training: bool = Field(True, description="show the model the record's image when it translates")
    instruction: str = Field(
        "Translate the following question from {language} to English. {question}",
        description="prompt of a training sample; must contain {question}",
    )
    recompute: bool = Field(False, description="recompute activations of the layers that carry a gradient")
    validation_records: int = Field(64, ge=0, description="records held back to measure the loss on")
    validate_every: int = Field(100, ge=1, description="steps between validation losses")

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
        """By what the product of the adapters' two matrices is multiplied: α / r."""
        assert self.lora_rank is not None
        return 2.0 if self.lora_alpha is None else self.lora_alpha / self.lora_rank


class SamplingConfig(Section):
    """Which question-translation pairs are trained on, and how often (`data.mixing` says how)."""

    languages: Literal["as_given", "temperature", "balanced", "overlap"] = Field(
        "as_given",
        description="shares of the languages: by number of pairs, by their T-th root, equal, or larger for "
        "those that overlap less with English",
    )
    temperature: float | None = Field(
        None, ge=1.0, description="T, with `languages: temperature`: shares follow pairs to the power of 1/T"
    )
    language_weights: dict[str, float] = Field(
        default_factory=dict, description="language: factor by which its share is multiplied, e.g. {sw: 2}"
    )
    per_template: int | None = Field(
        None, ge=1, description="most records whose English questions differ in single words only"
    )
    keep: float = Field(1.0, gt=0.0, le=1.0, description="share of each language's pairs that is kept")
    keep_by: Literal["hardest", "easiest"] | None = Field(
        None, description="which pairs are kept: those with the highest or lowest loss of the base model"
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
    every_steps: int = Field(100, ge=1, description="steps between checkpoints")
    every_minutes: float = Field(15.0, gt=0.0, description="most minutes between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")


class EvaluateConfig(Section):
    benchmarks: list[str] = Field(
        default_factory=list,
        description="benchmark files: NAME_LANG.tsv, .parquet, .json or a folder; NAME.jsonl",
    )
    image_root: str | None = Field(
        None, description="folder of the images that benchmark files name; default: the file's folder"
    )
    matching: Literal["parrot2024", "vlmevalkit2026"] = Field(
        "parrot2024", description="rule that matches a reply to an option; both are always computed"
    )
    localised_instruction: bool = Field(False, description="ask for the letter in the benchmark's language")
    batch_size: int = Field(16, ge=1, description="questions that are answered together")
    max_new_tokens: int = Field(16, ge=1, description="most tokens of a reply")


AnalysisName = Literal["neurons", "stability", "representation", "knockout", "attention"]


class AnalyseConfig(Section):
    analyses: list[AnalysisName] = Field(
        default_factory=lambda: list(get_args(AnalysisName)),
        description="analyses that are made; an empty list makes none",
    )
    records: int = Field(100, ge=2, description="probe records for `stability` and `representation`")
    items: int = Field(
        100, ge=1, description="questions of each benchmark for `knockout`, the same in each language"
    )
    tokens_per_row: int = Field(
        4096, ge=64, description="most tokens of a packed row in `stability`, `representation`, `knockout`"
    )
    attention_records: int = Field(
        8, ge=1, description="records with an image for `attention`, held back from training if there are any"
    )
    attention_layer: int | None = Field(
        None, ge=0, description="0-based layer of the pictures; default: the middle one"
    )
    pictures: int = Field(4, ge=0, description="attention maps that are drawn")
    neuron_share: float = Field(
        0.01,
        gt=0.0,
        le=1.0,
        description="share of all neurons, those of lowest entropy, that `neurons` calls specific",
    )
    neuron_percentile: float = Field(
        0.95,
        gt=0.0,
        lt=1.0,
        description="quantile of all activation probabilities that a specific neuron's exceeds",
    )

    def map_layer(self, layers: int) -> int:
        """The layer of the pictures in a decoder of so many: the middle one, if none was asked for. The last
        one has no attention map."""
        return min(layers // 2, layers - 2) if self.attention_layer is None else self.attention_layer

    @model_validator(mode="after")
    def analyses_are_named_once(self) -> AnalyseConfig:
        if len(set(self.analyses)) != len(self.analyses):
            raise ValueError(f"analyse.analyses names an analysis twice: {self.analyses}")
        return self


class AblateConfig(Section):
    """What `plast ablate` runs. Values are given by dotted key, as on the command line."""

    seeds: int = Field(3, ge=1, description="seeds of each variant, from `seed` upwards")
    variants: list[str] = Field(
        default_factory=list, description="names of the variants; default: all that apply"
    )
    every: dict[str, Any] = Field(default_factory=dict, description="{section.key: value} for every run")
    only: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="variant: {section.key: value} for the runs of one variant"
    )


class Config(Section):
    seed: int = Field(0, ge=0, description="seed of every random choice")
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
        30.0, gt=0.0, description="minutes after which a run in which no rank moves is ended"
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
    """What answering benchmarks depends on: the two sections of a config that a model alone needs."""

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


def options(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option as its dotted key and pydantic's description of it, in the order of the types."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("plast_train") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe by name, or a YAML file by path, and applies `section.key=value` overrides.

    Raises:
        UserError: unknown recipe, unreadable or invalid YAML, unknown key, wrong value, contradiction.
    """
    source, text = _read(recipe)
    tree, lines = _parse(source, text)
    if any(override.startswith("selection.strategy=") for override in overrides):
        # The recipe's number of layers, or its layers, belong to the strategy that is replaced.
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
        UserError: unknown key, wrong value or contradiction; `source` says where they come from.
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
            raise UserError(f"{path}: cannot be read ({error}); give a recipe name or a YAML file") from None
    if recipe not in recipes():
        hint = nearest(recipe, recipes())
        raise UserError(
            f"'{recipe}' is not a recipe{hint} (recipes: {', '.join(recipes())}; or a .yaml file)"
        )
    text = (resources.files("plast_train") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    return f"recipe {recipe}", text


def _parse(source: str, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree and, for messages, where each dotted key stands."""
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
        UserError: something else stands where a section belongs.
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
