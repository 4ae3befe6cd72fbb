"""Every bar by name. Only a bar that runs imports torch."""

from benchmarks.peers.bars import Bar


def _decode(size: str) -> Bar:
    title = f"size {size}: predicted time per token over the measured one, within 25 % at each of 1K to 32K"
    return Bar(title, "decode", "decode", {"size": size}, package="benchmarks.predict")


BARS: dict[str, Bar] = {f"decode-{size}": _decode(size) for size in ("6m", "25m", "125m")}
