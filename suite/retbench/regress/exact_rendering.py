"""What the exact lane found, as text: for a terminal, as Markdown, JSON and JUnit XML."""

import json
from dataclasses import asdict, dataclass

import pandas as pd

from retbench.errors import unknown_name
from retbench.regress.exact import Finding, exact_exit_code
from retbench.regress.junit import Case, Outcome, junit_xml
from retbench.regress.rendering import FORMATS, align
from retbench.report.formats import markdown_table

HEADER = ("result", "quantity", "expected", "found", "note")


@dataclass(frozen=True)
class ExactReport:
    """The exact lane's findings.

    Attributes:
        baseline: What they were held against.
        findings: One a quantity.
    """

    baseline: str
    findings: tuple[Finding, ...]

    @property
    def headline(self) -> str:
        """The outcome in one line."""
        statuses = [finding.status for finding in self.findings]
        return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses)))

    @property
    def unequal(self) -> list[Finding]:
        """What a reader should look at."""
        return [finding for finding in self.findings if finding.status != "equal"]

    def exit_code(self, *, strict: bool) -> int:
        """See `exact.exact_exit_code`."""
        return exact_exit_code(list(self.findings), strict=strict)

    def render(self, form: str, *, strict: bool) -> str:
        """The findings in one of `rendering.FORMATS`; text and Markdown show those that are not equal.

        Raises:
            ConfigError: an unknown format.
        """
        match form:
            case "text":
                table = align([HEADER, *self._rows()]) if self.unequal else []
                return "\n".join([*table, f"exact: {self.headline}; held against {self.baseline}"]) + "\n"
            case "md":
                return self._to_markdown()
            case "json":
                findings = [asdict(finding) for finding in self.findings]
                data = {
                    "outcome": self.headline,
                    "exit_code": self.exit_code(strict=strict),
                    "findings": findings,
                }
                return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
            case "junit":
                return junit_xml([_case(finding, strict=strict) for finding in self.findings])
            case _:
                raise unknown_name("format", form, FORMATS, where="--format")

    def _rows(self) -> list[tuple[str, ...]]:
        """The findings that are not equal."""
        return [(one.status, one.name, one.expected, one.found, one.note) for one in self.unequal]

    def _to_markdown(self) -> str:
        lines = [f"### retbench, exact: {self.headline}", "", f"Held against {self.baseline}."]
        if self.unequal:
            lines += ["", markdown_table(pd.DataFrame(self._rows(), columns=list(HEADER)))]
        return "\n".join(lines) + "\n"


def _case(finding: Finding, *, strict: bool) -> Case:
    """A finding as a case: changed is a failure, what stands on one side alone an error."""
    outcomes: dict[str, Outcome] = {
        "equal": "passed",
        "changed": "failure",
        "not compared": "failure" if strict else "skipped",
    }
    message = f"{finding.status}: expected {finding.expected}, found {finding.found} {finding.note}".strip()
    return Case(finding.name, "exact", outcomes.get(finding.status, "error"), message)
