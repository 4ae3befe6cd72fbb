"""Every bar by name. Only a bar that runs imports torch."""

from benchmarks.peers.bars import Bar


def _decode(size: str, *, compiled: bool = False) -> Bar:
    kind = "compiled" if compiled else "eager"
    title = (
        f"size {size}: predicted time per {kind} step over the measured one, "
        "{low} to {high} for every architecture"
    )
    arguments = {"size": size, "low": 0.80, "high": 1.25, "compiled": compiled}
    return Bar(title, "decode", "decode", arguments, package="benchmarks.predict")


_SIZES = ("6m", "25m", "125m")
BARS: dict[str, Bar] = {
    **{f"decode-{size}": _decode(size) for size in _SIZES},
    **{f"decode-{size}-compiled": _decode(size, compiled=True) for size in _SIZES},
}
