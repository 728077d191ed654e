"""The plan's memory and traffic against what torch and DeepSpeed really keep and send."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from plast_train.training.flops import TRAINED_PARTS, DecoderShape
from plast_train.training.memory import (
    RUNTIME,
    TrainedModel,
    activation_bytes,
    logits_bytes,
    rank_memory,
    step_traffic,
)

TOKENS = 64
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
SUBMODULE = {"all": "", "ffn": "mlp", "attention": "self_attn"}


class LiveTensors(TorchDispatchMode):
    """Remembers every storage that operations make, and which of them are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._made.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        return result

    def alive(self, but: list[torch.Tensor]) -> int:
        """Bytes of the storages that are alive, but for those of some tensors."""
        known = {tensor.untyped_storage()._cdata for tensor in but}
        return sum(
            nbytes for key, (ref, nbytes) in self._made.items() if not ref.expired() and key not in known
        )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("modules", ["all", "ffn", "attention"])
@pytest.mark.parametrize("layers", [[0, 1], [1, 3], [3]])
def test_activations_are_those_that_stay_alive_for_the_backward_pass(
    layers: list[int], modules: str, dtype: torch.dtype, recompute: bool
) -> None:
    model = LlamaModel(LlamaConfig(**SIZES, attn_implementation="sdpa")).to(dtype).requires_grad_(False)
    for layer in layers:
        model.layers[layer].get_submodule(SUBMODULE[modules]).requires_grad_(True)
    if recompute:
        for module in list(model.layers)[min(layers) :]:
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    embedded = torch.randn(1, TOKENS, 64, dtype=dtype)
    mask = torch.zeros(1, 1, TOKENS, TOKENS, dtype=dtype)
    positions = torch.arange(TOKENS)[None]
    with LiveTensors() as live:
        output = model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
    alive = live.alive(but=[embedded, mask, positions, output, *model.parameters()])
    if recompute and min(layers) == 0:
        alive += embedded.nbytes  # the lowest layer's input, kept by whoever made it
    size = dtype.itemsize
    described = TrainedModel(SHAPE, 0, 0, size, tuple(layers), TRAINED_PARTS[modules])
    assert activation_bytes(described, TOKENS, recompute) == alive


def test_logits_are_what_the_loss_keeps_at_least() -> None:
    logits = torch.randn(20, 97, dtype=torch.bfloat16, requires_grad=True)
    with LiveTensors() as live:
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.zeros(20, dtype=torch.int64))
    kept = live.alive(but=[loss]) + logits.nbytes
    described = TrainedModel(SHAPE, 0, 0, 2, (0,), TRAINED_PARTS["all"])
    # Then the backward pass adds a gradient in fp32 and, while it is cast, in bf16.
    assert kept <= logits_bytes(described, 20) <= kept + 20 * 97 * (4 + 4 + 2)


def described_7b() -> TrainedModel:
    shape = DecoderShape(4096, 11008, 32, 32, 128, 32, 32064)
    return TrainedModel(shape, 7_063_427_072, 1_011_916_800, 2, tuple(range(5)), TRAINED_PARTS["all"])


def test_partitioning_more_takes_less() -> None:
    peaks = {
        (stage, ranks): rank_memory(described_7b(), {"stage": stage}, ranks, 4096, 400, True).peak
        for stage in (1, 2, 3)
        for ranks in (1, 8)
    }
    assert peaks[1, 8] > peaks[2, 8] > peaks[3, 8]
    for stage in (1, 2, 3):
        assert peaks[stage, 8] < peaks[stage, 1]


def test_offloading_moves_states_to_the_host() -> None:
    cpu = {"device": "cpu"}
    zero = {"stage": 3, "offload_optimizer": cpu, "offload_param": cpu}
    kept, moved = (rank_memory(described_7b(), z, 4, 4096, 400, False) for z in ({"stage": 3}, zero))
    assert (moved.weights, moved.optimizer, moved.gradients) == (0, 0, 0)
    assert moved.host >= kept.weights + kept.optimizer + kept.gradients
    assert kept.host == 0


def test_step_and_forward_pass_do_not_add_up() -> None:
    memory = rank_memory(described_7b(), {"stage": 2}, 1, 1, 1, False)
    assert memory.peak == memory.weights + memory.gradients + memory.optimizer + RUNTIME + memory.step


def test_one_rank_sends_nothing() -> None:
    assert sum(step_traffic(described_7b(), {"stage": 3}, 1, 4).values()) == 0
