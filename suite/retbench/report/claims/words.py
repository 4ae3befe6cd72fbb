"""A claim in words: the paper's numbers and conditions, and what a verdict needs."""

import re
from collections.abc import Iterable, Sequence

from retbench.architectures.registry import title_of
from retbench.papers.claims import Claim, GrowsRule, LevelRule, RatioRule, ShareRule
from retbench.papers.papers import KIND_WORDS, MODEL_TITLES, Conditions, find_number
from retbench.report.wording import join_words
from retbench.units import format_count, format_size, format_tokens

_LACKING = "that retbench does not have yet"
_SIZE = re.compile(r"(^|[_/])[0-9.]+[mb]$")


FEATURE_WORDS = {
    "products": ("attention by products", ""),
    "fused": ("fused attention", "plain attention"),
    "grouped": ("grouped-query attention", "multi-head attention"),
    "graphs": ("CUDA graphs or compiled", "no CUDA graphs"),
    "concatenated": ("concat cache", ""),
}
"""Words for a baseline with a feature, and for one without; empty where the latter is usual."""
_CONFIG_WORDS = {"num_kv_heads": "{} key-value heads", "ffn_dim": "feed-forward networks of {}"}


def describe_paper(claim: Claim) -> str:
    """Return the paper's numbers with their conditions: '15.6x at batch 8, 8K; 6.7B, one A100-80GB'."""
    rule = claim.rule
    conditions = find_number(claim.numbers[0]).conditions if claim.numbers else Conditions()
    if isinstance(rule, RatioRule | ShareRule):
        number = find_number(claim.numbers[0]).printed
        found = f"{number} at batch {rule.batch_size}, {format_tokens(rule.context_len)}"
    else:
        found = _describe_numbers(claim.numbers)
    if isinstance(rule, LevelRule | GrowsRule):
        found = f"{found}, {_range_of(rule)}" if found else _range_of(rule)
    sizes = {match[0] for match in map(_SIZE.search, claim.numbers) if match}
    size = format_size(claim.scale.size or conditions.size or "") if len(sizes) < 2 else ""
    where = (size, conditions.hardware)
    return "; ".join(part for part in (found, ", ".join(filter(None, where))) if part)


def _range_of(rule: LevelRule | GrowsRule) -> str:
    first, last = rule.within
    if rule.along == "batch_size":
        return f"batch {first} to {last}, {format_tokens(rule.at)}"
    return f"{format_tokens(first)} to {format_tokens(last)}, batch {rule.at}"


def _describe_numbers(places: Sequence[str]) -> str:
    """Return numbers after the first words of what they measure, each with the row and column in which they differ."""
    names = [place.split("/")[2:] for place in places]
    varying = [index for index in range(2) if len({name[index] for name in names}) > 1]
    numbers = [find_number(place) for place in places]
    found = []
    for number, name in zip(numbers, names, strict=True):
        label = ", ".join(_title(name[index]) for index in varying)
        found.append(f"{number.printed} ({label})" if label else number.printed)
    metrics = {shorten_metric(number.metric) for number in numbers}
    return f"{metrics.pop()}: {', '.join(found)}" if len(metrics) == 1 else ", ".join(found)


def shorten_metric(metric: str) -> str:
    """Return a metric up to its first punctuation mark, which a comma inside a number is not."""
    return re.split(r",(?!\d)|[;:(]", metric)[0].strip()


def _title(name: str) -> str:
    """Return a row or column in words: 'retnet_1.3b' -> 'RetNet 1.3B', '8192' -> '8K', 'no_decay' -> 'no decay'."""
    if name.isdecimal():
        return format_tokens(int(name))
    model, _, size = name.rpartition("_") if _SIZE.search(name) else (name, "", "")
    title = MODEL_TITLES.get(model) or title_of(model)
    return " ".join(filter(None, (title.replace("_", " "), format_size(size))))


def describe_number(place: str) -> str:
    """Return one number with its source and origin: 'RetNet Figure 6(c), 8K, 8: 377.7 ms (...)'."""
    number = find_number(place)
    row, column = place.split("/")[2:]
    names = ", ".join(_title(name) for name in (row, column) if name != "value")
    return f"{number.source}, {names}: {number.printed} ({KIND_WORDS[number.kind]})"


def describe_sources(claim: Claim) -> list[str]:
    """Return a line per number of a claim, with its source and kind, and then what limits them."""
    return [*map(describe_number, claim.numbers), *list_limitations([claim])]


def list_origins(claims: Iterable[Claim]) -> list[str]:
    """Return a line per paper: where the claims' numbers were read, and how exactly."""
    numbers = (find_number(place) for claim in claims for place in claim.numbers)
    return [*dict.fromkeys(number.origin for number in numbers)]


def list_limitations(claims: Iterable[Claim]) -> list[str]:
    """Return a line per source: what the papers do not state about the claims' numbers, and what is doubtful."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for number in (find_number(place) for claim in claims for place in claim.numbers):
        not_stated, doubtful = found.setdefault(number.source, ({}, {}))
        not_stated |= dict.fromkeys(number.conditions.not_stated)
        doubtful |= dict.fromkeys(number.doubts)
    lines = []
    for source, (not_stated, doubtful) in found.items():
        words = [*([f"not stated: {', '.join(not_stated)}."] if not_stated else []), *doubtful]
        lines += [f"{source}: {' '.join(words)}"] if words else []
    return lines


def describe_conditions(claim: Claim, *, is_strong: bool = False) -> str:
    """Describe the paper's conditions, or those with a strong baseline."""
    scale = claim.scale
    parts = [
        part
        for part in (format_size(scale.size or ""), " ".join(scale.hardware), " or ".join(scale.dtypes))
        if part
    ]
    if scale.chunk_size:
        parts.append(f"chunks of {scale.chunk_size}")
    parts += [_CONFIG_WORDS[field].format(value) for field, value in scale.config.items()]
    if scale.num_tokens:
        parts.append(f"trained on {format_count(scale.num_tokens)} tokens")
    if scale.context_len:
        parts.append(f"contexts of {format_tokens(scale.context_len)}")
    if scale.text:
        parts.append(f"on {scale.text}")
    parts += [FEATURE_WORDS[feature][0] for feature in (claim.strong if is_strong else scale.having)]
    parts += [FEATURE_WORDS[feature][1] for feature in (() if is_strong else scale.without)]
    return ", ".join(parts) or "any"


def describe_missing(claim: Claim) -> str:
    """Return what a verdict on a claim needs, or why none is possible."""
    if claim.awaits is not None:
        lacking = [
            *(f"the workload {name}" for name in claim.awaits.workloads),
            *(_title(name) for name in claim.awaits.architectures),
        ]
        return f"needs {join_words(lacking)}, {_LACKING.replace('that', 'which')}"
    return claim.untestable or f"needs {claim.needs}"


def describe_need(claim: Claim) -> tuple[int, str]:
    """Return position and title of the group of claims that need the same for a verdict."""
    if claim.awaits is not None:
        kind = "a workload" if claim.awaits.workloads else "an architecture"
        return (4 if claim.awaits.workloads else 5), f"Needs {kind} {_LACKING}"
    if claim.rule is None:
        return 6, "No run here can decide"
    if claim.scale.hardware:
        return 0, f"Needs the paper's hardware, {' '.join(claim.scale.hardware)}"
    if claim.scale.num_tokens:
        return 1, "Needs models trained as in the paper"
    return (3 if claim.needs == "any machine" else 2), f"Needs {claim.needs}"


def describe_needed(claims: Sequence[Claim]) -> str:
    """Return what the claims of a group need, in one line of Markdown."""
    awaited = [claim.awaits for claim in claims if claim.awaits is not None]
    if awaited:
        workloads = dict.fromkeys(name for each in awaited for name in each.workloads)
        architectures = dict.fromkeys(name for each in awaited for name in each.architectures)
        kinds = {"Workloads": list(workloads), "Architectures": list(map(_title, architectures))}
        return " ".join(f"{kind} {_LACKING}: {join_words(names)}." for kind, names in kinds.items() if names)
    commands = [claim.command for claim in claims if claim.command]
    if not commands:
        reasons = dict.fromkeys(claim.untestable or "" for claim in claims)
        return " ".join(f"{reason[:1].upper()}{reason[1:]}." for reason in reasons)
    needs = claims[0].needs if len({claim.needs for claim in claims}) == 1 else None
    title = needs or describe_need(claims[0])[1].removeprefix("Needs ")
    return f"A verdict needs {title}: {_join_commands(commands)}."


def _join_commands(commands: Sequence[str]) -> str:
    """Return the commands of several claims as one, with the experiments that take the place of its name."""
    steps = dict.fromkeys(re.findall(r"retbench (train|run) ", " ".join(commands)))
    names = list(dict.fromkeys(re.findall(r"retbench (?:train|run) (\w+)", " ".join(commands))))
    if len(set(commands)) == 1:
        return f"`{commands[0]}`"
    name = names[0] if len(names) == 1 else "EXPERIMENT"
    line = " and ".join(f"`retbench {step} {name} --profile paper`" for step in sorted(steps, reverse=True))
    listed = f", where EXPERIMENT is {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else ""
    return f"{line}{listed}; each claim has its own options"
