"""Device memory of one rank while training, and what it sends to others, in bytes, known before a start.

Which tensors DeepSpeed keeps under each ZeRO stage (Rajbhandari et al. 2020) and which activations the
backward pass keeps in a decoder whose lower layers and weights are frozen: a frozen matrix product keeps no
input, and below the lowest trained layer nothing is kept at all.

Ring algorithms over N ranks send (N−1)/N of a tensor per rank for a reduce-scatter or an all-gather and twice
that for an all-reduce (Patarasuk & Yuan 2009).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from plast_train.training.flops import DecoderShape

GIB = 2**30
# CUDA context, NCCL and cuBLAS workspaces, and what the allocator loses to fragments [assumption].
RUNTIME = GIB * 3 // 2

_FP32 = 4
# DeepSpeed's own defaults for sizes that a configuration does not name (deepspeed.runtime.zero.config).
_REDUCE_BUCKET = 500_000_000
_MAX_LIVE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class TrainedModel:
    """What a rank holds and trains. `bytes_per_weight` is 2 for bfloat16 and 4 for float32; `parts` are the
    trained parts of each selected layer (`flops.TRAINED_PARTS`), or with an `adapter_rank` those that
    have LoRA adapters of this rank."""

    decoder: DecoderShape
    total_parameters: int
    trained_parameters: int
    bytes_per_weight: int
    selected_layers: tuple[int, ...]
    parts: frozenset[str]
    adapter_rank: int = 0

    @property
    def num_carrying_layers(self) -> int:
        """Layers through which a gradient passes: from the lowest trained one to the top."""
        return self.decoder.num_layers - min(self.selected_layers)


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank. `step` is in use only during the optimizer's step, when `activations`, `logits`,
    `working` and `buffers` are free; `host` is what lies in the machine's memory instead of the device's."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int
    buffers: int
    step: int
    runtime: int
    host: int

    @property
    def peak(self) -> int:
        resident = self.weights + self.gradients + self.optimizer + self.runtime
        return resident + max(self.activations + self.logits + self.working + self.buffers, self.step)

    def as_dict(self) -> dict[str, int]:
        return asdict(self) | {"peak": self.peak}


def rank_memory(
    model: TrainedModel, zero: dict[str, Any], ranks: int, num_tokens: int, num_labels: int, recompute: bool
) -> RankMemory:
    """The memory of one of `ranks` ranks, one packed row of `num_tokens` with `num_labels` per micro-step.

    `zero` is the `zero_optimization` section of a DeepSpeed configuration. The sum is an upper bound: it
    counts DeepSpeed's buffers as if they were full when the most activations are alive.
    """
    states = model_states(model, zero, ranks)
    return RankMemory(
        **states,
        activations=activation_bytes(model, num_tokens, recompute),
        logits=logits_bytes(model, num_labels),
        working=_working_bytes(model, num_tokens, recompute),
        buffers=_buffer_bytes(model, zero),
        runtime=RUNTIME,
    )


def model_states(model: TrainedModel, zero: dict[str, Any], ranks: int) -> dict[str, int]:
    """`weights`, `gradients`, `optimizer`, `step` and `host` bytes of one rank.

    The optimizer holds an fp32 master and two fp32 moments for each trained weight of the rank's share; its
    step needs an fp32 copy of the gradient and AdamW's square root of the second moment beside them.
    """
    stage = zero["stage"]
    share = -(-model.trained_parameters // ranks)
    weights = model.total_parameters * model.bytes_per_weight
    if stage == 3:
        weights = -(-weights // ranks)
    gradients = (model.trained_parameters if stage == 1 else share) * model.bytes_per_weight
    optimizer, step, host = 3 * _FP32 * share, 2 * _FP32 * share, 0
    if _on_cpu(zero, "offload_optimizer"):
        host += optimizer + _FP32 * share + gradients
        optimizer = step = gradients = 0
    if _on_cpu(zero, "offload_param"):
        host += weights
        weights = 0
    return {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "step": step,
        "host": host,
    }


def activation_bytes(model: TrainedModel, num_tokens: int, recompute: bool) -> int:
    """Tensors that autograd keeps for the backward pass of the decoder, over `num_tokens` positions.

    Counted on transformers' Llama with fused attention; exact there (`tests/unit/training/test_memory.py`).
    With `recompute` each carrying layer keeps its input alone.
    """
    decoder, size = model.decoder, model.bytes_per_weight
    final_norm = _norm_bytes(decoder)
    rotary = 2 * size * decoder.head_dim  # cosine and sine, shared by all layers
    if recompute:
        return num_tokens * (model.num_carrying_layers * size * decoder.hidden + rotary + final_norm)
    if model.num_carrying_layers == 1 and model.parts == {"ffn"}:
        rotary = 0
    carrying = (model.num_carrying_layers - 1) * _layer_bytes(model) + _lowest_layer_bytes(model)
    trained = len(model.selected_layers) * _trained_extra_bytes(model)
    return num_tokens * (carrying + trained + rotary + final_norm)


def logits_bytes(model: TrainedModel, num_labels: int) -> int:
    """Logits at the label positions: once as computed, and in fp32 three times (themselves, their log-softmax
    and its gradient)."""
    return num_labels * model.decoder.vocab * (model.bytes_per_weight + 3 * _FP32)


def step_traffic(model: TrainedModel, zero: dict[str, Any], ranks: int, micro_steps: int) -> dict[str, int]:
    """`gradients` and `weights`: bytes one rank sends in a step of `micro_steps` packed rows.

    Stage 1 reduces gradients once a step, stages 2 and 3 after every micro-step. Stages 1 and 2 reduce a
    bucket for all ranks together, which is an all-reduce, unless `use_multi_rank_bucket_allreduce` is off.
    Stage 3 gathers every weight for the forward pass, and those through which a gradient passes again for the
    backward pass, every micro-step; an upper bound, since it keeps small weights and those used again soon.
    """
    ring = (ranks - 1) / ranks
    trained = model.trained_parameters * model.bytes_per_weight
    if zero["stage"] < 3:
        reductions = 1 if zero["stage"] == 1 else micro_steps
        whole = zero.get("use_multi_rank_bucket_allreduce", True) or not zero.get("reduce_scatter", True)
        return {
            "gradients": round(ring * trained * reductions * (2 if whole else 1)),
            "weights": round(ring * trained),
        }
    decoder = model.decoder
    layer = decoder.attention_weights + decoder.ffn_weights + 2 * decoder.hidden
    again = model.num_carrying_layers * layer + decoder.hidden + decoder.vocab * decoder.hidden
    gathered = (model.total_parameters + again) * model.bytes_per_weight
    return {
        "gradients": round(ring * trained * micro_steps),
        "weights": round(ring * gathered * micro_steps),
    }


def _layer_bytes(model: TrainedModel) -> int:
    """Per token, in a frozen layer that carries a gradient: two norms, q, k, v, the attention's result and
    the scores' log-sum in each head, and of the FFN gate, act(gate) and up."""
    decoder, size = model.decoder, model.bytes_per_weight
    attention = 4 * size * decoder.attention_width + _FP32 * decoder.num_heads
    return 2 * _norm_bytes(decoder) + attention + 3 * size * decoder.intermediate


def _lowest_layer_bytes(model: TrainedModel) -> int:
    """As `_layer_bytes`, less what only a gradient of the layer's own input would need."""
    if model.parts == {"ffn"}:
        return 3 * model.bytes_per_weight * model.decoder.intermediate
    return _layer_bytes(model) - _norm_bytes(model.decoder)


def _trained_extra_bytes(model: TrainedModel) -> int:
    """Per token and trained layer: the inputs of trained matrices (shared by q, k, v and by gate, up; the
    attention's result is kept anyway) and the normalised states that a trained norm weight multiplies."""
    hidden = model.bytes_per_weight * model.decoder.hidden
    extra = {"attention": hidden, "norms": 2 * hidden}
    extra["ffn"] = hidden + model.bytes_per_weight * model.decoder.intermediate
    # An adapter's A keeps the same input, its B what A gives.
    extra["attention"] += 4 * model.bytes_per_weight * model.adapter_rank
    extra["ffn"] += 3 * model.bytes_per_weight * model.adapter_rank
    return sum(extra[part] for part in model.parts)


def _norm_bytes(decoder: DecoderShape) -> int:
    """An RMS norm keeps its input and the inverse root in fp32."""
    return _FP32 * decoder.hidden + _FP32


def _working_bytes(model: TrainedModel, num_tokens: int, recompute: bool) -> int:
    """What one layer needs beside what is kept: gradients of gate, up and their product, residual and norm
    [estimate]; with `recompute` also that layer's activations."""
    decoder, size = model.decoder, model.bytes_per_weight
    gradients = num_tokens * (3 * size * decoder.intermediate + 2 * _FP32 * decoder.hidden)
    return gradients + (num_tokens * (_layer_bytes(model) + _trained_extra_bytes(model)) if recompute else 0)


def _buffer_bytes(model: TrainedModel, zero: dict[str, Any]) -> int:
    """DeepSpeed's gradient buckets (two where it overlaps communication) and, in stage 3, whole weights that
    are gathered at one time."""
    bucket = int(zero.get("reduce_bucket_size", _REDUCE_BUCKET)) * model.bytes_per_weight
    if zero["stage"] < 3:
        return bucket * (2 if zero.get("overlap_comm") else 1)
    live = int(zero.get("stage3_max_live_parameters", _MAX_LIVE_PARAMETERS))
    return bucket + min(model.total_parameters, live) * model.bytes_per_weight


def _on_cpu(zero: dict[str, Any], key: str) -> bool:
    return bool((zero.get(key) or {}).get("device", "none") == "cpu")
