"""The zero-shot tasks by lm-eval's names.

They are the tasks of the RetNet paper and of the GLA paper's table, and tasks of recall: three whose answer stands in
the text (Based, arXiv:2402.18668), and RULER's needles, which lm-eval generates.
"""

from dataclasses import dataclass

from retbench.errors import ConfigError, unknown_name
from retbench.evaluation import ruler

RETNET = "RetNet (arXiv:2307.08621) Table 3"
GLA = "GLA (arXiv:2312.06635) Table 2"
RECALL = "GLA (arXiv:2312.06635) Table 3"
NEEDLES = "Gated DeltaNet (arXiv:2412.06464) Table 2"


@dataclass(frozen=True)
class TaskEntry:
    """One task.

    Attributes:
        name: lm-eval's name, which users give.
        definition: lm-eval's file of the task, below its folder of tasks.
        metric: The metric to show first. GLA's table has acc_norm for HellaSwag, ARC-challenge and OpenBookQA; the
            RetNet paper does not say which one it shows for HellaSwag.
        source: The papers whose tables have the task.
        on_hub: False if the data must come from the user's own files.
        takes_shots: True if examples can precede a document.
        reads_whole: True if the answer stands anywhere in the prompt, so that a prompt that is too long is an error.
        is_generated: True if lm-eval generates the prompts for a tokenizer and a length.
    """

    name: str
    definition: str
    metric: str
    source: str
    on_hub: bool = True
    takes_shots: bool = True
    reads_whole: bool = False
    is_generated: bool = False


def _recall(name: str) -> TaskEntry:
    return TaskEntry(name, f"{name}/{name}.yaml", "contains", RECALL, takes_shots=False, reads_whole=True)


def _needle(name: str) -> TaskEntry:
    return TaskEntry(
        name,
        f"ruler/{name}.yaml",
        ruler.METRIC,
        NEEDLES,
        takes_shots=False,
        reads_whole=True,
        is_generated=True,
    )


TASKS: dict[str, TaskEntry] = {
    entry.name: entry
    for entry in (
        TaskEntry("hellaswag", "hellaswag/hellaswag.yaml", "acc_norm", f"{RETNET}; {GLA}"),
        TaskEntry("boolq", "super_glue/boolq/default.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("copa", "super_glue/copa/default.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("piqa", "piqa/piqa.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("wsc273", "wsc273/default.yaml", "acc", RETNET),
        TaskEntry("winogrande", "winogrande/default.yaml", "acc", f"{RETNET}; {GLA}"),
        TaskEntry("storycloze_2016", "storycloze/storycloze_2016.yaml", "acc", RETNET, on_hub=False),
        TaskEntry("lambada_openai", "lambada/lambada_openai.yaml", "acc", GLA),
        TaskEntry("arc_easy", "arc/arc_easy.yaml", "acc", GLA),
        TaskEntry("arc_challenge", "arc/arc_challenge.yaml", "acc_norm", GLA),
        TaskEntry("openbookqa", "openbookqa/openbookqa.yaml", "acc_norm", GLA),
        TaskEntry("sciq", "sciq/sciq.yaml", "acc", GLA),
        TaskEntry("wikitext", "wikitext/wikitext.yaml", "word_perplexity", GLA, takes_shots=False),
        *map(_recall, ("swde", "fda", "squad_completion")),
        *map(_needle, ("niah_single_1", "niah_single_2", "niah_single_3")),
    )
}


def find_task(name: str, num_fewshot: int) -> TaskEntry:
    """Return the task called `name`; ConfigError if there is none, or if it takes no examples but is given some."""
    if name not in TASKS:
        raise unknown_name("zero-shot task", name, TASKS)
    entry = TASKS[name]
    if num_fewshot and not entry.takes_shots:
        raise ConfigError(
            f"task {name} takes no examples, and num_fewshot is {num_fewshot}. Set it to 0, or leave the task out."
        )
    return entry
