"""JUnit XML, as continuous integration reads it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

Outcome = Literal["passed", "failure", "error", "skipped"]

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML 1.0 document may hold, such as the escapes of a coloured traceback."""


@dataclass(frozen=True)
class Case:
    """One thing that was checked; `message` is shown unless it passed."""

    name: str
    kind: str
    outcome: Outcome
    message: str


def junit_xml(cases: Sequence[Case]) -> str:
    """A suite of cases as a document."""
    suite = ElementTree.Element("testsuite", name="retbench", tests=str(len(cases)))
    for name, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(sum(case.outcome == outcome for case in cases)))
    for case in cases:
        name, message = (_FORBIDDEN.sub("", text) for text in (case.name, case.message))
        element = ElementTree.SubElement(suite, "testcase", name=name, classname=f"retbench.{case.kind}")
        if case.outcome != "passed":
            ElementTree.SubElement(element, case.outcome, message=message)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
