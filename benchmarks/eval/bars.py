"""Every bar by name. Only a bar that runs imports torch or a peer."""

from functools import partial

from benchmarks.peers.bars import Bar

_Bar = partial(Bar, package="benchmarks.eval", peers=("transformers", "accelerate"))


def _agree(task: str, limit: int | None = None, max_length: int = 512) -> Bar:
    size = f"first {limit}" if limit else "all"
    title = (
        f"{task} ({size}): each document's acc and acc_norm = HFLM's, except where float32 does not decide"
    )
    return _Bar(
        title, "agreement", "agree", {"task": task, "limit": limit, "max_length": max_length}, timed=False
    )


def _speed(documents: int, shots: int, faster: float) -> Bar:
    examples = f" with {shots} examples" if shots else ""
    title = f"HellaSwag{examples}, first {documents} documents: our time over HFLM's, at most 1 / {faster}"
    arguments = {"documents": documents, "shots": shots, "limit": 1 / faster}
    return _Bar(title, "speed", "hellaswag", arguments)


BARS: dict[str, Bar] = {
    "agree-hellaswag": _agree("hellaswag", 500),
    "agree-piqa": _agree("piqa", max_length=1024),  # it has choices of over 512 tokens
    "agree-lambada_openai": _agree("lambada_openai"),
    "agree-boolq": _agree("boolq", 300),
    "agree-arc_easy": _agree("arc_easy"),
    "wikitext": _Bar("bits per byte = HFLM's to 1e-4", "agreement", "wikitext", timed=False),
    "batched": _Bar("batched and shared = one request at a time", "agreement", "batched", timed=False),
    "novel": _Bar(
        "100,000 tokens streamed: losses of the parallel form to 1e-4, at most 1.2 times the memory of 4,096",
        "streaming",
        "novel",
        timed=False,
        peers=(),
    ),
    "speed-hellaswag": _speed(200, 0, 1.5),
    "speed-hellaswag-4-shot": _speed(50, 4, 2.5),
}
