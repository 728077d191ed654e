"""The plan's memory and traffic against what DeepSpeed really keeps and sends on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.paths import TESTS
from transformers import LlamaConfig, LlamaForCausalLM

from plast_train.training.flops import TRAINED_PARTS, DecoderShape
from plast_train.training.memory import (
    TrainedModel,
    model_states,
    step_traffic,
)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SHAPE = DecoderShape(
    hidden=64, intermediate=172, num_heads=4, num_kv_heads=4, head_dim=16, num_layers=4, vocab=97
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """By ZeRO stage, what DeepSpeed held and sent on rank 0 of 2."""
    out = tmp_path_factory.mktemp("memory") / "measured.json"
    script = TESTS / "support" / "memory_ranks.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*command, str(script), str(out), json.dumps(SIZES)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, dict[str, float]] = json.loads(out.read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_states_and_traffic_are_those_of_deepspeed(measured: dict[str, dict[str, float]], stage: int) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.model.layers[1].parameters())
    described = TrainedModel(SHAPE, total, trained, 2, (1,), TRAINED_PARTS["all"])
    zero = {"stage": stage}
    found = measured[str(stage)]
    states = model_states(described, zero, ranks=2)
    # Stage 2 keeps the gradient of a matrix that lies in two partitions whole on both ranks.
    split_matrix = 64 * 172 * 2 if stage == 2 else 0
    assert found["weights"] == states["weights"]
    assert found["optimizer"] == states["optimizer"]
    assert states["gradients"] <= found["gradients"] <= states["gradients"] + split_matrix
    sent = sum(step_traffic(described, zero, ranks=2, micro_steps=2).values())
    assert sent == pytest.approx(found["sent"], rel=1e-3)
