"""The zero-shot tasks: those of the RetNet paper and those of the GLA paper's table. Nothing heavy is imported here."""

from dataclasses import dataclass

from retbench.errors import unknown_name

RETNET = "RetNet (arXiv:2307.08621) Table 3"
GLA = "GLA (arXiv:2312.06635) Table 2"


@dataclass(frozen=True)
class TaskEntry:
    """One task.

    Attributes:
        name: As users name it; lm-eval's own name.
        definition: lm-eval's file of it, below its folder of tasks.
        metric: The metric to show first. GLA's table has acc_norm for HellaSwag, ARC-challenge and OpenBookQA; which
            one the RetNet paper shows for HellaSwag it does not say.
        source: The paper whose table has the task; where both do, both.
        on_hub: Whether its data can be had from the hub; else only from files of the user's own.
        takes_shots: Whether examples can stand before a document.
    """

    name: str
    definition: str
    metric: str
    source: str
    on_hub: bool = True
    takes_shots: bool = True


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
    )
}


def find_task(name: str) -> TaskEntry:
    """The task called `name`; ConfigError with a suggestion when there is none."""
    if name not in TASKS:
        raise unknown_name("zero-shot task", name, TASKS)
    return TASKS[name]
