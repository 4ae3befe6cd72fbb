"""The report: everything that was found and everything that is missing, the same bytes each time, from any folder."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt

from report.synthetic_records import CPU, GPU, Maker, write_results
from report.synthetic_scores import ScoreMaker
from retbench.errors import ConfigError, RecordError
from retbench.records.record import Record
from retbench.report.figures import drawing
from retbench.report.report import make_page, write_report
from retbench.report.results import Results

SECTIONS = ["Measured on this machine", "Claims of the papers", "Tables", "Checks and limitations"]
EVIDENCE = [
    "Claims in detail",
    "Findings",
    "Tables of all metrics",
    "Model matching",
    "Executed kernels",
    "Equivalence checks",
    "Environment",
    "Limitations",
    "Commands",
]


class Written(NamedTuple):
    """Both pages of a report and its Markdown."""

    index: str
    evidence: str
    markdown: str


def write_pages(results: Path, out: Path) -> None:
    """Write a report without the files of its figures, SVG and PNG, which `report` has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "save_figure", lambda figure, stem: [])
        write_report(results, out)


def report_of(records: list[Record], tmp_path: Path) -> Written:
    """Pages and Markdown made from these records."""
    write_pages(write_results(tmp_path / "results", records), tmp_path / "out")
    return read_pages(tmp_path / "out")


def read_pages(out: Path) -> Written:
    names = ("index.html", "evidence.html", "report.md")
    return Written(*((out / name).read_text(encoding="utf-8") for name in names))


class Report(NamedTuple):
    """A folder of results, and the report on it with the paths that it names."""

    results: Path
    out: Path
    paths: tuple[Path, ...]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, cpu_records: list[Record]) -> Report:
    folder = tmp_path_factory.mktemp("whole")
    results, out = write_results(folder / "results", cpu_records), folder / "deep" / "reports"
    return Report(results, out, tuple(write_report(results, out).paths))


@pytest.fixture(scope="module")
def whole(report: Report) -> Written:
    return read_pages(report.out)


def test_page_markdown_and_figures_are_written_and_named(report: Report) -> None:
    assert sorted(report.paths) == sorted(path for path in report.out.rglob("*") if path.is_file())
    assert {path.name for path in report.paths} >= {
        "index.html",
        "evidence.html",
        "report.md",
        "latency_decode_batch1.svg",
    }


def test_the_answer_comes_first_and_sections_stand_in_their_order(whole: Written) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", whole.index) == SECTIONS
    assert re.findall(r"<h2>(.*?)</h2>", whole.evidence) == EVIDENCE
    assert re.findall(r"^## (.*)$", whole.markdown, flags=re.MULTILINE) == [*SECTIONS, *EVIDENCE]
    for text, heading in ((whole.index, "<h2>"), (whole.markdown, "## ")):
        answer = text.partition(heading)[0]
        assert re.search(r"Decode: 1\.22× slower at\s1K, 4\.49× faster at\s32K", answer)
        assert re.search(r"Memory: [\d.]+× less memory at\s32K", answer)
    assert whole.index.index("latency_decode_batch1") < whole.index.index("<h2>")


def test_the_first_page_has_a_line_on_each_check_that_the_second_page_shows(whole: Written) -> None:
    checks = whole.index.partition('<section id="checks"')[2]
    table = whole.evidence.partition('<section id="equivalence"')[2].partition("</section>")[0]
    num_rows = table.count("<tr>") - 1
    assert f"All {num_rows} equivalence checks passed; worst error" in checks
    assert 'href="evidence.html#equivalence"' in checks


def test_published_records_stand_apart_from_the_readers_own(
    cpu_records: list[Record], tmp_path: Path
) -> None:
    own = [r.model_copy(update={"run_id": "mine"}) for r in cpu_records if r.experiment == "latency"]
    root = write_results(tmp_path / "results", own)
    write_results(root / "published", cpu_records)
    write_pages(root, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    mine = page.partition('<section id="measured"')[2].partition("</section>")[0]
    evidence = (tmp_path / "out" / "evidence.html").read_text(encoding="utf-8")
    published = evidence.partition('<section id="published"')[2].partition("</section>")[0]
    assert {*re.findall(r'<figure id="([a-z]+)_', mine)} == {"latency"}
    assert {*re.findall(r'<figure id="([a-z]+)_', published)} == {"memory"}
    assert f'<th scope="row">{CPU.name}/latency/mine.jsonl</th>' in evidence
    assert f'<th scope="row">published/{CPU.name}/memory/20260102T030405Z.jsonl</th>' in evidence
    assert "<h2>Equivalence checks: published results</h2>" in evidence
    contents = evidence.partition("<nav")[2].partition("</nav>")[0]
    first, _, folded = contents.partition("<details><summary>Published results</summary>")
    assert '<a href="#equivalence">Equivalence checks</a>' in first
    assert '<a href="#published">Figures</a>' in folded
    assert '<a href="#equivalence-published">Equivalence checks</a>' in folded
    assert {*re.findall(r'href="#([^"]+)"', contents)} == {*re.findall(r'<section id="([^"]+)"', evidence)}


def test_files_of_figures_are_those_of_the_readers_own_records(
    cpu_records: list[Record], tmp_path: Path
) -> None:
    own = [r.model_copy(update={"run_id": "mine"}) for r in cpu_records if r.experiment == "latency"]
    root = write_results(tmp_path / "results", own)
    write_results(root / "published", cpu_records)
    write_report(root, tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert {name.partition("_")[0] for name in names} == {"latency"}
    evidence, markdown = (
        (tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("evidence.html", "report.md")
    )
    assert '<figure id="memory_batch1"' in evidence
    for page in (evidence, markdown):
        assert {*re.findall(r"figures/(\w+)\.(?:svg|png|csv)", page)} <= names
        assert "retbench report --results results/published" in re.sub(r"</?(?:code|span)>", "", page)


def test_experiments_of_different_models_stand_side_by_side_each_with_its_pair(
    cpu_records: list[Record], training_records: list[Record], tmp_path: Path
) -> None:
    page, _, markdown = report_of([*cpu_records, *training_records], tmp_path)
    matching = markdown.partition("## Model matching")[2].partition("## Executed kernels")[0]
    assert re.findall(r"^### (.*)$", matching, flags=re.MULTILINE) == ["latency, memory", "training_cost"]
    assert matching.count("Parameters without embedding and head differ by") == 2
    assert "| chunkwise RetNet |" in matching
    gate = markdown.partition("## Equivalence checks")[2].partition("## Environment")[0]
    assert re.findall(r"^### (.*)$", gate, flags=re.MULTILINE) == ["latency, memory", "training_cost"]
    assert "may not be pooled" not in markdown
    for figure in ("latency_decode_batch1", "training_cost"):
        assert figure in page


def test_the_pages_need_nothing_but_each_other(whole: Written) -> None:
    for page in (whole.index, whole.evidence):
        assert re.findall(r"<script[^>]*>", page) == ["<script>"]
        assert "@import" not in page
        assert not re.search(r"""(?:src|href)=["'](?!#|figures/|data:,|index.html|evidence.html)""", page)
        assert re.findall(r"https?://[^\"' )]+", page) == []


def test_no_two_elements_share_an_id_and_every_reference_has_its_target(whole: Written) -> None:
    pages = {"index.html": whole.index, "evidence.html": whole.evidence}
    found = {name: re.findall(r'\bid="([^"]+)"', page) for name, page in pages.items()}
    for name, page in pages.items():
        assert len(found[name]) == len(set(found[name]))
        assert {*re.findall(r'(?:href="|url\()#([^")]+)', page)} <= {*found[name]}
        for place, target in re.findall(r'href="(\w+\.html)#([^"]+)"', page):
            assert target in found[place]


def test_figures_follow_the_pages_colours_and_hold_text(whole: Written) -> None:
    drawn = re.findall(r"<svg.*?</svg>", whole.index, flags=re.DOTALL)
    assert len(drawn) >= 4
    for svg in drawn:
        assert "var(--line0)" in svg
        assert "var(--ink)" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "Transformer</text>" in svg
        assert len(svg) < 25_000


def test_each_point_of_a_figure_has_its_value_and_its_model(whole: Written) -> None:
    svg = whole.index.partition('<figure id="latency_decode_batch1"')[2].partition("</svg>")[0]
    circles = re.findall(r'<circle [^>]*data-model="(\w+)"[^>]*><title>(.*?)</title>', svg)
    assert len(circles) == 12
    assert {model for model, _ in circles} == {"retnet", "transformer"}
    assert any(re.fullmatch(r"RetNet, 32K: [\d.]+ \[[\d.]+, [\d.]+\] ms", text) for _, text in circles)
    label = re.search(r'aria-label="([^"]*)"', svg)
    assert label
    assert "RetNet, 32K: " in label[1]
    assert "Transformer, 32K: " in label[1]


def test_the_same_records_give_the_same_bytes(report: Report, tmp_path: Path) -> None:
    """Compares pages, with the figures in them, and data; `test_figures` compares the files of figures."""
    write_pages(report.results, tmp_path)
    again = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    written = [path.relative_to(report.out) for path in report.paths]
    assert again == sorted(path for path in written if path.suffix not in {".svg", ".png"})
    for path in again:
        assert (report.out / path).read_bytes() == (tmp_path / path).read_bytes(), path


def test_what_made_it_can_be_made_again(whole: Written) -> None:
    for text in (re.sub(r"</?(?:code|span)>", "", whole.evidence), whole.markdown):
        assert "retbench run latency --profile cpu" in text
        assert "retbench run memory --profile cpu" in text
        assert "epyc-9b14-2c/latency/20260102T030405Z.jsonl" in text


def test_failures_other_machines_damage_and_old_lines_are_all_reported(
    tmp_path: Path, cpu_records: list[Record], gpu_records: list[Record]
) -> None:
    newer = [r.model_copy(update={"started_at": "2026-02-01T00:00:00Z"}) for r in gpu_records]
    again = [r.model_copy(update={"started_at": "2026-02-01T00:00:01Z"}) for r in newer[:2]]
    root = write_results(tmp_path / "results", [*cpu_records, *newer, *again])
    with open(next((root / CPU.name / "latency").iterdir()), "ab") as file:
        file.write(b'{"schema_version": 1, "run\n{"schema_version": 0}\n\xff\xfe\n')
    write_pages(root, tmp_path / "out")
    for name in ("evidence.html", "report.md"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "CUDA out of memory: 77.0 GiB needed" in text
        assert "machine epyc-9b14-2c, here a100-sxm4-80gb" in text
        assert "2 records were measured again" in text
        assert "torn line" in text
        assert "schema_version is 0 and this retbench reads 1" in text
        assert "not UTF-8" in text


HOSTILE = (
    "<img src=x onerror=alert(1)> [click](javascript:alert) ![x](http://a.b/c.png)",
    "`<b>`x` a\\|b`c\\|<b>d`",
    "\\<script> **bold** _it_ *it* [<i>](#claims)",
    "# heading <!-- comment ``` 1. item",
    "1. item ```",
)


def markup_of(words: str, folder: Path) -> tuple[str, Counter[str]]:
    """Both pages of records that have the words wherever a record has any, and the markup of the same in Markdown."""

    def change(arguments: dict[str, Any]) -> dict[str, Any]:
        other = {"experiment": words, "error": words, "command": words, "absent": {words: words}}
        environment = arguments["environment"] | {words: words, "cpu_model": words, "code_revision": words}
        failed = {"status": "failed", "metrics": {}} if arguments["round"] == 1 else {}
        model = arguments["model"].model_copy(update={"size": words, "variant": words})
        return arguments | other | failed | {"environment": environment, "model": model}

    index, evidence, markdown = report_of(Maker(CPU, change=change).latency((1024, 2048)), folder)
    blocks = MarkdownIt("commonmark").enable("table").parse(markdown)
    tokens = [*blocks, *(token for block in blocks for token in block.children or ())]
    places = [str(token.attrs.get("href", token.attrs.get("src", "#"))) for token in tokens]
    assert all(place.startswith(("figures/", "#")) for place in places)
    return index + evidence, Counter(token.type for token in tokens)


def test_words_of_a_record_are_no_markup_in_the_page_nor_in_markdown(tmp_path: Path) -> None:
    _, plain = markup_of("plain", tmp_path / "plain")
    for number, words in enumerate(HOSTILE):
        page, found = markup_of(words, tmp_path / str(number))
        assert not re.search(r"<(img|b|i|script )\b[^<]*>", page)
        for kind in (
            "html_inline",
            "html_block",
            "em_open",
            "image",
            "heading_open",
            "list_item_open",
            "fence",
        ):
            assert found[kind] == plain[kind], (kind, words)
        assert not found["html_inline"] + found["html_block"]


def test_one_experiment_alone_says_that_the_other_is_missing(
    tmp_path: Path, cpu_records: list[Record]
) -> None:
    page, evidence, markdown = report_of([r for r in cpu_records if r.experiment == "latency"], tmp_path)
    assert "Memory: not measured in this run" in page
    assert "memory: not measured under these conditions. Run <code>retbench run memory</code>." in evidence
    assert "memory: not measured under these conditions. Run `retbench run memory`." in markdown
    assert "memory_batch1" not in page


def test_a_folder_of_failures_alone_is_still_a_report(tmp_path: Path) -> None:
    def fail(arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {
            "status": "failed",
            "metrics": {},
            "gate": None,
            "error": "worker\nended <by> signal 9 |",
        }

    maker = Maker(CPU, change=fail)
    lengths = (1024, 2048)
    _, page, markdown = report_of(maker.latency(lengths) + maker.memory(lengths), tmp_path)
    assert "there is nothing to compare" in page
    assert "ended &lt;by&gt; signal 9" in page
    assert "No record here holds an equivalence check." in page
    assert "worker ended \\<by> signal 9 \\|" in markdown


def test_one_model_alone_is_still_a_report(tmp_path: Path, cpu_records: list[Record]) -> None:
    alone = [r for r in cpu_records if (r.model.name, r.workload) == ("retnet", "memory")]
    _, page, _ = report_of(alone, tmp_path)
    assert "Only one model was measured: RetNet." in page


def test_an_unfair_run_is_flagged(tmp_path: Path, cpu_records: list[Record]) -> None:
    records = [
        r.model_copy(update={"backend": r.backend | {"cuda_graph": True}}) if r.model.name == "retnet" else r
        for r in cpu_records
        if r.workload == "memory"
    ]
    index, page, markdown = report_of(records, tmp_path)
    assert "1 settings differ that should be equal" in index
    assert '<td class="differs">differs</td>' in page
    assert "| executed: cuda_graph | True | False | differs |" in markdown


def test_the_report_is_on_the_newest_set(tmp_path: Path) -> None:
    later = replace(GPU, started=CPU.started + timedelta(days=3))
    _, page, _ = report_of(
        [*Maker(later).memory(lengths=(1024,)), *Maker(CPU).memory(lengths=(1024,))], tmp_path
    )
    measured = page.partition("<h2>Executed kernels")[2]
    assert "NVIDIA A100-SXM4-80GB" in measured
    assert "AMD EPYC 9B14" not in measured


@pytest.mark.parametrize("made", [True, False])
def test_without_results_it_says_what_to_run(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "results"
    if made:
        folder.mkdir()
    with pytest.raises(RecordError, match="retbench run latency"):
        write_report(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_a_clear_error(results: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"cannot be written to: .* with --out"):
        write_report(results, tmp_path / "out")


BLOCKED = """
import sys
from pathlib import Path

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCK:
            raise ImportError(f"{name} is not to be imported here")

BLOCK = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Block())
"""


def run_blocked(blocked: str, code: str, *arguments: str) -> str:
    """Return the output of a program that cannot import some packages."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKED + code, blocked, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_report_needs_no_torch(tmp_path: Path, cpu_records: list[Record]) -> None:
    memory = [record for record in cpu_records if record.workload == "memory"]
    results = write_results(tmp_path / "results", memory)
    code = "from retbench.report.report import write_report\nprint(len(write_report(*map(Path, sys.argv[2:4])).paths))"
    written = run_blocked("torch", code, str(results), str(tmp_path / "out"))
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert int(written) == len(files)
    assert files > {"index.html", "evidence.html", "report.md"}
    assert {Path(name).suffix for name in files} == {".html", ".md", ".svg", ".png", ".csv"}


def test_a_table_needs_neither_torch_nor_matplotlib(results: Path) -> None:
    code = (
        "from retbench.report.frames import observations\n"
        "from retbench.report.results import load_results\n"
        "from retbench.report.tables.formats import render\n"
        "from retbench.report.selection import select\n"
        "from retbench.report.contents import contents_of\n"
        "from retbench.report.tables.experiments import table_of\n"
        "records = load_results(Path(sys.argv[2])).records\n"
        "assert len(observations(records))\n"
        "print(render(table_of(contents_of(select(records, 'memory')), 'memory'), 'csv'))"
    )
    printed = run_blocked("torch,matplotlib,jinja2", code, str(results))
    assert printed.startswith("model,workload,batch_size,context_len,status")


def test_the_quality_section_has_conditions_weights_and_a_table_per_workload(scored: Results) -> None:
    section = next(section for section in make_page(scored).evidence if section.name == "quality")
    titles = [block.title for block in section.blocks if block.kind == "table"]
    assert len(titles) == len(set(titles)) == 4  # the weights, and three workloads
    ((conditions,),) = [block.content for block in section.blocks if block.title == "Conditions"]
    assert "AMD EPYC 9B14 · float32" in conditions  # evaluated under those that it was trained under
    assert "Not compared" not in titles


def test_the_report_holds_quality_beside_its_data(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path / "results", seeds={"1m": (0,), "6m": (0,)})
    maker.everything()
    paths = write_report(maker.write(), tmp_path / "out").paths
    page = next(path for path in paths if path.suffix == ".md").read_text("utf-8")
    for words in (
        "RetNet's bits per byte on litbank/original (whole, 8K)",
        "Beyond the training length of 2K tokens",
        "classic_books",
    ):
        assert words in page
    names = {path.name for path in paths}
    assert "quality_zeroshot_0shot.svg" in names
    assert "quality_zeroshot_0shot.csv" in names


def test_a_report_without_figures_is_written_too(tmp_path: Path) -> None:
    maker = ScoreMaker(tmp_path / "results", seeds={"1m": (0,)})
    maker.perplexities("litbank/original", "last", 2048)
    paths = write_report(maker.write(), tmp_path / "out").paths
    assert {path.name for path in paths} == {"index.html", "evidence.html", "report.md"}
    assert "ratio of bits/token" in (tmp_path / "out/report.md").read_text(encoding="utf-8")
