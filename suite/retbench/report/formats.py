"""How a table is written: JSON in base units, and Markdown and LaTeX with units as people read them."""

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from retbench.report.points import MAIN_METRIC
from retbench.report.readings import QUALITY
from retbench.report.scenes import describe_status
from retbench.report.score_tables import readable_scores
from retbench.units import (
    format_bytes,
    format_energy,
    format_percent,
    format_power,
    format_rate,
    format_seconds,
    format_tokens,
)

INTERVALS = (
    "tpot_s",
    "ttft_s",
    "step_s",
    "tokens_per_s",
    "roofline_ratio",
    "energy_per_token_j",
    "ratio_to_transformer",
)
"""Columns that have a low and a high beside them: what is measured anew in every round."""

_HEADINGS = {
    "model": "model",
    "batch_size": "batch",
    "context_len": "context",
    "tpot_s": "time per token",
    "ttft_s": "time to first token",
    "step_s": "time per step",
    "peak_bytes": "weights + state + workspace",
    "largest_batch": "largest batch",
    "largest_batch_step": "to within",
    "expected_largest_batch": "closed form",
    "ratio_to_transformer": "ratio to Transformer",
    "tokens_per_s": "tokens/s",
    "roofline_ratio": "of roofline",
    "bandwidth_ratio": "of bandwidth",
    "bytes_per_step": "bytes a step",
    "energy_per_token_j": "energy per token",
    "power_w": "power",
    "weight_bytes": "weights",
    "state_bytes": "state or KV cache",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "workspace_bytes": "workspace",
    "expected_weight_bytes": "weights, closed form",
    "expected_state_bytes": "state, closed form",
    "process_peak_bytes": "process, peak",
    "memory_limit_bytes": "memory limit",
    "available_bytes": "left by libraries",
}
"""What is shown to people, in this order."""

_TRAINING_HEADINGS = {"peak_bytes": "peak memory", "ratio_to_transformer": "time ratio to Transformer"}
"""What is called otherwise in a table of training, which has no state and compares times."""


_POINT = ("model", "batch_size", "context_len")


def readable_tables(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table of `tables.table_of` for people: a frame of text a workload, with readable units."""
    tables = readable_scores(frame)
    costs = frame[~frame["workload"].isin(QUALITY)]
    for workload, rows in costs.groupby("workload", sort=False):
        metrics = _metrics_shown(rows)
        main = MAIN_METRIC.get(str(workload), metrics[0] if metrics else "status")
        if main not in metrics:  # no point has a value: the column is there to say why
            metrics.insert(0, main)
        headings = _HEADINGS | (_TRAINING_HEADINGS if workload == "training" else {})
        point = [name for name in _POINT if (name, main) != ("batch_size", "largest_batch")]
        columns = [*point, *metrics]
        cells = rows.to_dict(orient="records")
        table = pd.DataFrame(
            {headings.get(name, name): [_cell(row, name, main) for row in cells] for name in columns}
        )
        table["rounds"] = [f"{row['rounds_ok']} of {row['rounds']}" for row in cells]
        tables[str(workload)] = table
    return tables


def _metrics_shown(rows: pd.DataFrame) -> list[str]:
    """The columns of metrics that hold any number: those known here in their order, then the others."""
    lead = {*_POINT, "workload", "status", "rounds_ok", "rounds"}
    names = [
        str(name) for name in rows.columns if name not in lead and not str(name).endswith(("_low", "_high"))
    ]
    known = [name for name in _HEADINGS if name in names]
    return [name for name in dict.fromkeys([*known, *names]) if rows[name].notna().any()]


def _cell(row: Mapping[Hashable, Any], name: str, main: str | None) -> str:
    """One cell as people read it; without a value, the status in the main column and a dash elsewhere."""
    value = row.get(name, math.nan)
    if isinstance(value, str):
        return value
    if math.isnan(value):
        if name != main:
            return "–"
        return "not recorded" if row["status"] == "ok" else describe_status(str(row["status"]))
    ends = [row[f"{name}_low"], row[f"{name}_high"]] if name in INTERVALS else []
    return _with_interval([_format(name, float(item)) for item in (value, *ends) if not math.isnan(item)])


def _format(name: str, number: float) -> str:
    """A number with the unit that its name says."""
    if name == "ratio_to_transformer":
        return f"{number:#.3g}".removesuffix(".")
    if name == "context_len":
        return format_tokens(int(number))
    if "largest_batch" in name:
        return f"{number:,.0f}"
    if name.endswith("_per_s"):
        return format_rate(number, "").strip()
    endings: dict[str, Callable[[float], str]] = {
        "_per_step": format_bytes,
        "_bytes": format_bytes,
        "_ratio": format_percent,
        "_j": format_energy,
        "_w": format_power,
        "_s": format_seconds,
    }
    return next(
        (write(number) for ending, write in endings.items() if name.endswith(ending)), f"{number:.4g}"
    )


def _with_interval(texts: Sequence[str]) -> str:
    """Value and ends as '8.12 [8.01, 8.23] ms', the unit once where all share it."""
    if len(texts) == 1:
        return texts[0]
    numbers, units = zip(*(text.partition(" ")[::2] for text in texts), strict=True)
    if len(set(units)) == 1:
        value, low, high = numbers
        return f"{value} [{low}, {high}] {units[0]}".rstrip()
    value, low, high = texts
    return f"{value} [{low}, {high}]"


def to_json(frame: pd.DataFrame) -> str:
    """A list of objects, one a row; null where there is no number."""
    rows = [
        {name: None if isinstance(item, float) and math.isnan(item) else item for name, item in row.items()}
        for row in frame.astype(object).to_dict(orient="records")
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A frame of text as a Markdown table: first column flush left, the others right."""
    header = [str(column) for column in table.columns]
    rule = [":--", *("--:" for _ in header[1:])]
    rows = [[str(cell) for cell in row] for row in table.itertuples(index=False)]
    return "\n".join(
        "| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in [header, rule, *rows]
    )


def escape_markdown(text: str) -> str:
    """A text that fits into one cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def to_markdown(frame: pd.DataFrame) -> str:
    """A Markdown table a workload, under its name."""
    blocks = [
        f"### {workload}\n\n{markdown_table(table)}\n" for workload, table in readable_tables(frame).items()
    ]
    return "\n".join(blocks)


_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "µ": r"\textmu{}",
}


def to_latex(frame: pd.DataFrame) -> str:
    """A tabular a workload, for the package booktabs."""
    blocks = []
    for workload, table in readable_tables(frame).items():
        rows = [list(table.columns), *table.itertuples(index=False)]
        lines = [" & ".join(_escape_latex(str(cell)) for cell in row) + r" \\" for row in rows]
        columns = "l" + "r" * (len(table.columns) - 1)
        head, body = lines[0], lines[1:]
        blocks.append(
            "\n".join(
                [
                    f"% {workload}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    head,
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    "",
                ]
            )
        )
    return "\n".join(blocks)


def _escape_latex(text: str) -> str:
    return "".join(_LATEX_SPECIAL.get(character, character) for character in text)
