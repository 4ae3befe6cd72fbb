"""The card of a results folder that is published as a dataset, and the files that go with it."""

import json
from collections import Counter
from pathlib import Path

from retbench.errors import ConfigError, printable
from retbench.files import inside
from retbench.report.results import Results, run_of

CARD_NAME = "README.md"


def published_files(root: Path, results: Results) -> dict[str, Path]:
    """Return the record files below a folder and their per-document files, by their paths in the dataset.

    Raises:
        ConfigError: `root` is a file, or a record names a file outside its folder.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: is a file. Give the folder of results, so that its layout is kept.")
    records = {root / results.source_of(record).path for record in results.records}
    if lost := sorted(path for path in records if not path.is_file()):
        raise ConfigError(
            f"{lost[0]}: cannot be found under the name that is shown. Rename the file and its folders."
        )
    documents = {inside(folder, one.file) for one, folder in results.folders.items()}
    found = sorted(records | {path for path in documents if path.is_file()})
    return {path.relative_to(root).as_posix(): path for path in found}


def write_card(name: str, results: Results) -> str:
    """Return the card of a dataset: what was measured where, and how to read it."""
    counts = Counter(run_of(record)[:2] for record in results.records)
    rows = [
        f"| {_cell(machine)} | {_cell(experiment)} | {number} |"
        for (machine, experiment), number in sorted(counts.items())
    ]
    title = name.rpartition("/")[2]
    return f"""---
pretty_name: {json.dumps(title)}
tags:
- retbench
- benchmark
configs:
- config_name: default
  data_files: "**/*.jsonl"
---

# {title}

Records of retbench: one JSON object per cell and round, with the value of every metric, the model, the settings and
the environment.

| machine | experiment | records |
| :-- | :-- | --: |
{chr(10).join(rows)}

```python
import retbench
from huggingface_hub import snapshot_download

frame = retbench.load(snapshot_download({json.dumps(name)}, repo_type="dataset"))
```

`retbench report --results FOLDER` draws tables, figures and claims from a copy.
"""


def _cell(text: str) -> str:
    """Return a text as a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")
