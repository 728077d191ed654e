"""What every stage receives: the config, the run folder, the ranks, and the model once it is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.nn import Parameter

from plast_train.config import Config, load_config
from plast_train.data.questions import Record
from plast_train.lvlm.freezing import changed_weights
from plast_train.lvlm.loading import Lvlm, load_lvlm
from plast_train.lvlm.prompts import Prompter
from plast_train.run_folder import RunFolder, read_json, sha256_of
from plast_train.runtime.deepspeed_config import load_deepspeed_config
from plast_train.runtime.distributed import Ranks
from plast_train.runtime.rank import wait_for_files


@dataclass
class Context:
    """The run as one rank sees it. The model is loaded at its first use, once for all stages."""

    config: Config
    run: RunFolder
    ranks: Ranks
    deepspeed: dict[str, Any]

    @cached_property
    def base(self) -> dict[str, Any]:
        description: dict[str, Any] = read_json(self.run.base)
        return description

    @cached_property
    def records(self) -> list[Record]:
        """The checked records, in the order of the data."""
        with self.run.records.open(encoding="utf-8") as file:  # splitlines() would split at U+2028 too
            return [Record(**json.loads(line)) for line in file]

    @cached_property
    def trains_projector(self) -> bool:
        """Whether the projector is trained: in full fine-tuning, where every training sample has an image."""
        train = self.config.train
        with_images = train.method == "full" and train.image_in_training
        return with_images and all(record.image is not None for record in self.records)

    @property
    def partitioned(self) -> bool:
        """Whether the weights are partitioned over the ranks (ZeRO-3)."""
        return bool(self.deepspeed["zero_optimization"]["stage"] == 3)

    @cached_property
    def lvlm(self) -> Lvlm:
        self.ranks.say(f"loading {self.base['path']}")
        zero3 = self.deepspeed if self.partitioned else None
        return load_lvlm(self.base, self.config.model, self.ranks.device, zero3)

    @cached_property
    def prompter(self) -> Prompter:
        return self.lvlm.prompter(self.config.data.languages)

    def changed_parameters(self) -> dict[str, Parameter]:
        """The base's parameters that training changes, by name; only after the stage `select`."""
        selection, lvlm = read_json(self.run.selection), self.lvlm
        layers, modules = selection["selected_layers"], selection["modules"]
        return changed_weights(
            lvlm.model, lvlm.family, layers, modules, self.config.train, self.trains_projector
        )


def context_of(run: RunFolder, ranks: Ranks) -> Context:
    """The context of this rank, from the files as rank 0 reads them.

    Raises:
        UserError: a machine does not get to see the same files.
    """
    # A shared file system may still show other machines the folder's previous state, so that each rank's own
    # reading could differ.
    config = ranks.on_first(lambda: load_config(str(run.config)))
    ranks.watchdog.minutes = config.watchdog_minutes
    files = ranks.on_first(lambda: {path.name: sha256_of(path) for path in (run.base, run.records)})
    wait_for_files(run, files, ranks)
    return Context(config, run, ranks, load_deepspeed_config(config))
