"""The mask used on CUDA, compiled here for the CPU (which starts a compiler)."""

from __future__ import annotations

import pytest
from support.packed_rows import TOLERANCE, worst_hidden_state

from plast_train.data.questions import Record
from plast_train.lvlm.loading import Lvlm


@pytest.mark.slow  # compiles
def test_hidden_states_under_flex_attention(lvlm: Lvlm, records: list[Record]) -> None:
    """The mask used on CUDA: the same rule as a `BlockMask`."""
    lvlm.model.set_attn_implementation({"text_config": "flex_attention", "vision_config": "sdpa"})
    try:
        assert worst_hidden_state(lvlm, records[:2]) <= TOLERANCE
    finally:
        lvlm.model.set_attn_implementation("sdpa")
