"""The dtypes that models are measured in, and their other usual names."""

from typing import Any, Literal, get_args

from retbench.errors import unknown_name

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
_DTYPE_SYNONYMS = {
    **dict.fromkeys(("fp64", "f64", "double"), "float64"),
    **dict.fromkeys(("fp32", "f32", "float", "single"), "float32"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("bf16", "bfloat"), "bfloat16"),
}
"""Other usual names of the dtypes."""


def dtype_id(name: Any) -> Any:
    """Return the name of a dtype as torch has it: 'fp16' and 'half' are 'float16'; anything unknown as it is."""
    return _DTYPE_SYNONYMS.get(name.lower(), name) if isinstance(name, str) else name


def find_dtype(name: str) -> Dtype:
    """Return a dtype by any of its usual names; ConfigError with a suggestion for an unknown one."""
    found: Dtype = dtype_id(name)
    if found not in get_args(Dtype):
        raise unknown_name("dtype", name, get_args(Dtype), where="--dtype")
    return found
