"""How large a checkpoint is. Imports nothing, so that the launcher can ask."""

BYTES_PER_PARAMETER = 12  # fp32 master and two moments
OVERHEAD_PER_RANK = 64 * 1024  # names, random states


def checkpoint_bytes(elements: int, world: int) -> int:
    """An upper bound of a checkpoint's size for `elements` trained parameters."""
    return elements * BYTES_PER_PARAMETER + world * OVERHEAD_PER_RANK
