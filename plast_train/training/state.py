"""What one training run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from deepspeed.runtime.engine import DeepSpeedEngine
from torch.nn import Parameter

from plast_train.checkpoint.format import Identity
from plast_train.checkpoint.save import Saver
from plast_train.config import Config
from plast_train.data.questions import Record
from plast_train.data.sampling import TrainingPlan
from plast_train.lvlm.loading import Lvlm
from plast_train.run_folder import RunFolder
from plast_train.runtime.distributed import Ranks
from plast_train.training.flops import ModelShape
from plast_train.training.losses import Validation


@dataclass
class Training:
    """Everything one training run is made of, as one rank holds it. `trained` are the trained parameters by
    name."""

    config: Config
    run: RunFolder
    ranks: Ranks
    lvlm: Lvlm
    records: list[Record]
    plan: TrainingPlan
    validation: Validation
    engine: DeepSpeedEngine
    trained: dict[str, Parameter]
    identity: Identity
    shape: ModelShape
    saver: Saver
