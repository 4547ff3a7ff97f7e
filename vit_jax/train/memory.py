"""What a compiled program takes of memory, and the error that it is too little."""

import re
from typing import Any

import jax


def needed_bytes(memory: Any) -> int:
    """All that lives at once at most, by a compiled program's `memory_analysis()`."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, its compiler or this machine has too little memory."""
    if isinstance(error, MemoryError):
        return True
    said = re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.IGNORECASE)
    return isinstance(error, jax.errors.JaxRuntimeError) and said is not None
