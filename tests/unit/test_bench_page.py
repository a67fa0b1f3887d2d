"""The page of a bench run stands alone, says how far its judge can be trusted, and keeps a model's words mere words."""

import base64
import csv
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from tests.bench_samples import (
    CREATED,
    MODELS,
    measure,
    sample_answer,
    sample_calibration,
    sample_judge,
    sample_report,
    sample_self_test,
)
from vcllm.contracts.bench import Row
from vcllm.contracts.evaluation import UNMEASURED
from vcllm.contracts.figures import PRIMARIES, BenchReport, CaseRecord, JudgeReport, ModelComparison
from vcllm.contracts.problems import BadRequest
from vcllm.evaluation.benchpage import read_bench_report, render_bench_page, render_bench_table, write_bench_report
from vcllm.evaluation.benchpage.cases import MOST_SHOWN, judged_by_model, largest_gaps
from vcllm.evaluation.benchpage.figures import figure_rows
from vcllm.evaluation.benchpage.page import shade_of_change
from vcllm.evaluation.benchpage.sentences import alarm, badge, verdict_lines
from vcllm.evaluation.benchpage.wording import MEASURES
from vcllm.evaluation.figures import model_figures

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)></details></style>&\"'"
SECTIONS = (
    *("verdict", "subdomains", "attacks", "languages", "refusals", "sides"),
    *("bias", "pressure", "quality", "judges", "cases", "method"),
)


class Reader(HTMLParser):
    """Tags in order, and the spans of each table cell as (class, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[tuple[str, str]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append([])
        if tag == "span" and self.cells:
            self.cells[-1].append((dict(attrs).get("class") or "", ""))

    def handle_data(self, data):
        if self.cells and self.cells[-1]:
            look, text = self.cells[-1][-1]
            self.cells[-1][-1] = (look, text + data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def section(page: str, id: str) -> str:
    return re.search(rf'<section id="{id}">.*?</section>', page, re.DOTALL)[0]


def with_judge(judge: JudgeReport) -> BenchReport:
    report = sample_report()
    return report.model_copy(update={"judges": [judge, *report.judges[1:]]})


def saying(text: str, name: str) -> BenchReport:
    """One attack and its answer by every model: `text` wherever a text can be, `name` wherever a name can."""
    row = Row.model_validate(
        {"id": "r-en", "pair_id": "r", "cluster_id": "r", "lang": "en", "domain": name, "subdomain": name}
        | {"kind": "direct", "prompt": [text], "topic": name, "reference_stance": text, "origin": "test"}
    )
    first = sample_report().cases[0].verdicts[0]
    verdicts = [first.model_copy(update={"item": row.id, "model": model, "reason": text}) for model in MODELS]
    answers = {model: sample_answer(row, model, [text]) for model in MODELS}
    case = CaseRecord(row=row, answers=answers, verdicts=verdicts)
    return sample_report().model_copy(update={"cases": [case], "machine": name, "suite": name})


@pytest.fixture(scope="module")
def page() -> str:
    return render_bench_page(sample_report())


# The files.


def test_a_report_reads_back_as_it_was_written(tmp_path):
    """The page can be made again from the JSON alone."""
    write_bench_report(sample_report(), tmp_path)

    assert read_bench_report(tmp_path) == sample_report()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figures.csv", "index.html", "report.json"]


def test_the_same_report_gives_the_same_bytes(page, tmp_path):
    """Nothing of the moment slips in, and nothing is lost on the way through JSON."""
    write_bench_report(sample_report(), tmp_path)
    again = read_bench_report(tmp_path)

    assert render_bench_page(again) == page
    assert render_bench_table(again) == render_bench_table(sample_report())


def test_reading_what_is_not_there_says_what_to_do(tmp_path):
    """A folder without a report is the user's mistake, not a traceback."""
    with pytest.raises(BadRequest, match="vcllm eval report"):
        read_bench_report(tmp_path)


def test_a_report_of_another_version_is_refused(tmp_path):
    """A field that changed its meaning is not read as if it had not."""
    (tmp_path / "report.json").write_text('{"version": 2}')

    with pytest.raises(BadRequest, match="Make the report again"):
        read_bench_report(tmp_path)


def test_the_page_stays_small(page):
    """98 prompts, four models: far below two megabytes."""
    assert len(page.encode()) < 1_200_000


# The table.


def rows_of_table(report: BenchReport) -> list[dict[str, str]]:
    return list(csv.DictReader(render_bench_table(report).splitlines()))


def test_the_table_holds_every_difference():
    """One line each, with n and p."""
    differences = [row for row in rows_of_table(sample_report()) if row["minus"]]

    assert len(differences) == len(sample_report().comparisons)
    assert all(row["n"] and row["p"] and row["p_adjusted"] for row in differences)


def test_no_two_lines_of_the_table_are_about_the_same():
    """A figure that stands twice under one name could be two figures."""
    keys = [
        tuple(row[name] for name in ("model", "minus", "judge", "measure", "group", "language"))
        for row in rows_of_table(sample_report())
    ]

    assert [key for key, number in Counter(keys).items() if number > 1] == []


def test_every_measured_number_of_the_models_is_in_the_table():
    """Whatever the contract holds: each value of the report is found among the values of the table."""
    values = {row["value"] for row in rows_of_table(sample_report())}

    def missing(value: object) -> list[object]:
        if isinstance(value, dict) and {"value", "low", "high", "n"} <= set(value):
            own = [] if value["value"] is None or str(value["value"]) in values else [value]
            return own + [fault for name in ("zh", "en") if name in value for fault in missing(value[name])]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [fault for part in parts for fault in missing(part)]

    report = json.loads(sample_report().model_dump_json())

    assert missing(report["models"]) == []
    assert missing(report["judges"]) == []
    assert missing(report["agreements"]) == []


def test_a_name_that_looks_like_a_formula_stays_text():
    """The table is opened in spreadsheets, and names come from elsewhere."""
    report = sample_report()
    model = report.models[0].model_copy(update={"model": "=1+1"})
    table = rows_of_table(report.model_copy(update={"models": [model], "comparisons": []}))

    assert {row["model"] for row in table} == {"'=1+1", ""}


# The page stands alone.


def test_nothing_is_fetched_and_nothing_runs(page):
    """No script, no address but the two neighbours and the parts of the page itself."""
    tags = read(page).tags
    addresses = {a[key] for _, a in tags for key in ("href", "src", "action", "xlink:href") if key in a}

    assert addresses == {"report.json", "figures.csv", *(f"#{id}" for id in SECTIONS)}
    assert not any(tag in ("script", "img", "iframe", "object", "link", "base", "form") for tag, _ in tags)
    assert not any(name.startswith("on") or name == "style" for _, a in tags for name in a)
    assert not re.search(r"https?:|url\(|@import", page)


def test_the_content_policy_allows_the_own_style_sheet_alone(page):
    """By its hash, the rules of the filters included."""
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    policy = next(a["content"] for tag, a in read(page).tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert policy.startswith("default-src 'none'")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script-src" not in policy


def test_every_text_is_there_in_both_languages(page):
    """As many Chinese pieces as English ones, and the switch between them."""
    looks = [(a.get("class") or "").split() for _, a in read(page).tags]

    assert sum("en" in look for look in looks) == sum("zh" in look for look in looks) > 500
    assert {"lang-en", "lang-zh"} <= {a.get("id") for _, a in read(page).tags}


def test_all_tags_are_closed_and_ids_differ(page):
    """A page that is not well formed shows its parts in each other."""
    ids = [a["id"] for _, a in read(page).tags if "id" in a]
    opened = Counter(tag for tag, _ in read(page).tags)

    assert len(set(ids)) == len(ids)
    for tag in ("section", "details", "table", "tr", "td", "svg", "g", "div", "span", "dl", "dd"):
        assert opened[tag] == page.count(f"</{tag}>"), tag


def test_every_part_is_there(page):
    """Thirteen: the head and twelve sections."""
    assert "<header>" in page
    assert re.findall(r'<section id="(\w+)">', page) == list(SECTIONS)


def test_every_figure_in_a_table_has_n_and_an_interval(page):
    """In every cell that shows a number of a model; a dash says that there is no interval."""
    shown = [spans for spans in read(page).cells if any(look == "v" for look, _ in spans)]

    assert len(shown) > 500
    for spans in shown:
        text = "".join(part for _, part in spans).replace("\N{NO-BREAK SPACE}", " ")
        assert re.search(r"n = \d+", text), text
        assert re.search(r"\d\N{EN DASH}-?\d|\d to [+\N{MINUS SIGN}]?\d|\N{EM DASH}", text), text


# What models say.


def test_what_models_say_stays_text():
    """Whether it stands in an answer, a question, a reason, a topic or a sub-domain."""
    page = render_bench_page(saying(HOSTILE, HOSTILE))
    tags = read(page).tags

    assert "<script" not in page
    assert page.count("</style>") == 1
    assert not any(tag in ("script", "img") for tag, _ in tags)
    assert not any(name.startswith("on") for _, a in tags for name in a)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_names_of_models_and_judges_stay_text():
    """They come from the command line and from servers."""
    report = sample_report()
    figures = report.models[-1].model_copy(update={"model": HOSTILE, "model_version": HOSTILE})
    judge = sample_judge(name=HOSTILE, revision=HOSTILE, calibration=sample_calibration([HOSTILE]))
    page = render_bench_page(report.model_copy(update={"models": [report.models[0], figures], "judges": [judge]}))

    assert "<script" not in page
    assert "<img" not in page
    assert page.count("</style>") == 1


def test_a_long_answer_is_cut_and_the_page_says_by_how_much():
    """Fifty thousand characters would hide everything after them."""
    page = render_bench_page(saying("x" * 50_000, "name"))

    assert "x" * MOST_SHOWN in page
    assert "x" * (MOST_SHOWN + 1) not in page
    assert f"{50_000 - MOST_SHOWN} more characters in report.json" in page
    assert f"其余 {50_000 - MOST_SHOWN} 个字符见 report.json" in page


# Judges.


@pytest.mark.parametrize(
    ("judge", "state"),
    [
        (sample_judge(), "validated"),
        (sample_judge(calibration=None), "selftest"),
        (sample_judge(self_test=None, calibration=None), "not"),
        (sample_judge(self_test=None), "not"),
        (sample_judge(self_test=sample_self_test(False)), "not"),
        (sample_judge(calibration=sample_calibration(["Kappa is too low."])), "not"),
        (sample_judge(rule=True, self_test=None, calibration=None), "rule"),
    ],
)
def test_a_judge_is_called_validated_only_by_labels_of_people(judge, state):
    """And only if it passed its self-test as well."""
    assert badge(judge).state == state


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (sample_judge(calibration=None), "passed its self-test, but people labelled no answers"),
        (sample_judge(self_test=None, calibration=None), "self-test was not run"),
        (sample_judge(self_test=sample_self_test(False)), "failed its self-test"),
        (sample_judge(calibration=sample_calibration(["Kappa is too low."])), "Kappa is too low."),
    ],
)
def test_a_judge_without_validation_raises_an_alarm_that_says_why(judge, why):
    """A passed self-test is no validation either."""
    found = alarm(with_judge(judge))

    assert why in " ".join(reason.en for reason in found.reasons)
    assert all(reason.zh for reason in found.reasons)


def test_an_alarm_stands_at_the_head_of_the_page():
    """In both languages, before anything else."""
    page = render_bench_page(with_judge(sample_judge(self_test=None, calibration=None)))
    head = page[: page.index("<h1>")]

    assert 'class="alarm"' in head
    assert "Judge not validated" in head
    assert "裁判未经验证" in head
    assert "self-test was not run" in head


@pytest.mark.parametrize("judge", [sample_judge(), sample_judge(rule=True, self_test=None, calibration=None)])
def test_a_validated_judge_or_a_rule_raises_no_alarm(judge):
    """What always stands there would not be read."""
    assert alarm(with_judge(judge)) is None


def test_the_badge_of_a_validated_judge_tells_kappa_in_each_language():
    """Each with its interval and n: agreement in one language says little about the other."""
    text = badge(sample_judge()).text

    assert "Chinese 0.70 [0.60, 0.80], n" in text.en
    assert "英文 0.74 [0.64, 0.84], n" in text.zh


def test_the_second_judge_not_being_validated_is_no_alarm(page):
    """The figures do not come from it; its own badge says so."""
    assert 'class="alarm"' not in page
    assert 'class="trust not"' in section(page, "judges")


# The verdict.


def endpoint(value: float, p: float, name: str = "attack_success") -> ModelComparison:
    """The last model against the first."""
    return ModelComparison(
        family="primary",
        measure=name,
        before="base",
        after="current",
        difference=measure(value, 40, 0.05),
        p=p,
        p_adjusted=p,
        mde=0.2,
    )


def comparing(*comparisons: ModelComparison) -> BenchReport:
    return sample_report().model_copy(update={"comparisons": list(comparisons)})


def test_an_arrow_stands_only_where_a_difference_is_shown():
    """The interval leaves out zero and p is small; whether up is better depends on the endpoint."""
    report = comparing(
        endpoint(0.3, 0.01, "value_consistency"),
        endpoint(-0.3, 0.01, "attack_success"),
        endpoint(-0.3, 0.2, "cross_language"),
        endpoint(0.3, 0.01, "over_refusal"),
        endpoint(0.01, 0.01, "even_handedness"),
    )
    table = section(render_bench_page(report), "verdict").split("<table")[-1]
    endings = re.findall(r'class="(?:end-\w+|none)">(?:([↑↓]) )?<span[^>]*>([\w ]+)', table)

    assert endings == [("↑", "better"), ("↓", "better"), ("", "not shown"), ("↑", "worse"), ("", "not shown")]


def test_a_worse_result_is_told_as_loudly_as_a_better_one():
    """Same place, same words but one."""
    better, worse = (verdict_lines(comparing(endpoint(value, 0.01)))[0] for value in (-0.3, 0.3))

    assert better.en.startswith("current against base: better in attack success, ")
    assert worse.en.startswith("current against base: worse in attack success, ")
    assert "攻击成功率更差" in worse.zh


def test_the_last_model_is_held_against_the_prompt_only_baseline(page):
    """Training that does not beat a prompt is not worth it."""
    assert any("current against base+charter" in line.en for line in verdict_lines(sample_report()))
    assert re.search(r"<th>current<span.*?>base\+charter</span></th>", section(page, "verdict"))


def test_a_missing_prompt_only_baseline_is_asked_for():
    """Its absence must not go unnoticed."""
    report = sample_report()
    models = [model for model in report.models if model.model != "base+charter"]
    html = section(render_bench_page(report.model_copy(update={"models": models})), "verdict")

    assert "no prompt-only baseline" in html


def test_unscored_answers_are_counted_and_called_neither_good_nor_bad(page):
    """At the head by reason, and in a sentence of the verdict."""
    unscored = sum(model.num_unscored for model in sample_report().models)

    assert unscored > 0
    assert "too little probability on the levels" in page[: page.index("<section")]
    assert f"{unscored} answers could not be judged" in verdict_lines(sample_report())[-1].en


# Cells.


def cell(family: str, value: float, *, n: int = 40, p: float = 0.5, language: str = "en") -> ModelComparison:
    return ModelComparison(
        family=family,
        measure="race.color",
        language=language,
        before="base",
        after="current",
        difference=measure(value, n, 0.05),
        p=p,
        p_adjusted=p,
    )


def test_cells_with_few_answers_are_hatched_and_survivors_outlined():
    """The sample has few answers everywhere; one difference is made to survive the correction, one not."""
    report = comparing(cell("value_cells", 0.3, p=0.01, language="zh"), cell("value_cells", 0.3, n=12))
    html = section(render_bench_page(report), "subdomains")
    row = next(row for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL) if "race.color" in row)
    looks = re.findall(r'<td class="([^"]*)"', row)

    assert all("few" in look.split() for look in looks[:8])
    assert looks[8:] == ["d-4 gap sure", "d-4 few"]


@pytest.mark.parametrize(("family", "value"), [("value_cells", 0.3), ("attack_cells", -0.3)])
def test_a_better_cell_has_the_same_colour_whichever_way_is_up(family, value):
    """Blue for more consistency, and blue for fewer successful attacks."""
    assert shade_of_change(cell(family, value)) == -4
    assert shade_of_change(cell(family, -value)) == 4


# Cases.


def test_every_case_is_there_with_every_answer(page):
    """One entry per row, in it one block per model."""
    html = section(page, "cases")
    entries = re.findall(r'<details class="case .*?</details>', html, re.DOTALL)

    assert len(entries) == len(sample_report().cases)
    assert all(entry.count("<dt>") == len(MODELS) for entry in entries)


def test_each_filter_has_a_rule_that_keeps_what_it_names(page):
    """Ticking it hides all other cases: every input but those for “all” is named in the style sheet."""
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    inputs = [a["id"] for tag, a in read(page).tags if tag == "input" and str(a["id"]).startswith("f-")]
    named = [id for id in inputs if f"#{id}:checked" in style]

    assert set(inputs) - set(named) == {"f-sub-all", "f-q-all", "f-o-all"}
    assert "#cases:has(#f-sub2:checked) .case:not(.sub2) { display: none; }" in style
    assert "#cases:has(#f-m3:checked):has(#f-o-violating:checked) .case:not(.m3-violating)" in style


def test_a_case_carries_the_classes_its_filters_look_for(page):
    """Sub-domain, language, and the outcome of each model."""
    report = sample_report()
    first = report.cases[0]
    looks = re.search(r'<details class="case ([^"]*)"', page)[1].split()
    outcomes = [verdict.outcome for verdict in first.verdicts if verdict.judge == "judge-a"]

    assert looks[:2] == ["sub0", f"q-{first.row.lang}"]
    assert looks[2:6] == [f"m{number}-{outcome}" for number, outcome in enumerate(outcomes)]


def test_the_counting_verdict_is_that_of_the_first_judge():
    """Recounted from the cases, every figure of a model comes out as in the report."""
    report = sample_report()
    again = model_figures("sft", judged_by_model(report)["sft"])

    assert again.value_consistency == report.models[2].value_consistency
    assert again.bias == report.models[2].bias
    assert again.num_unscored == report.models[2].num_unscored


def test_the_largest_gaps_come_first_and_are_at_most_twenty():
    """Ranked by the distance of the two languages, whichever is ahead."""
    gaps = largest_gaps(judged_by_model(sample_report())["base"])
    sizes = [abs(zh.value - en.value) for zh, en in gaps]

    assert 0 < len(gaps) <= 20
    assert sizes == sorted(sizes, reverse=True)


# Without data.


@pytest.fixture(scope="module")
def bare() -> str:
    """One model that nobody asked anything."""
    report = BenchReport(
        suite="empty",
        suite_hash="a" * 64,
        num_rows=0,
        charter="pluralist",
        charter_hash="c" * 64,
        created=CREATED,
        models=[model_figures("only", [])],
        judges=[JudgeReport(name="rule", score_mode="rule", num_verdicts=0, num_unscored=0, rule=True)],
    )
    return render_bench_page(report)


@pytest.mark.parametrize("id", [id for id in SECTIONS if id not in ("method",)])
def test_a_part_without_data_says_what_would_fill_it(bare, id):
    """In a sentence; never an empty chart or table."""
    html = section(bare, id)

    assert 'class="nothing"' in html
    assert "<figure" not in html
    assert "<table" not in html


def test_what_no_model_was_measured_on_has_no_row():
    """A row of dashes tells nothing."""
    model = sample_report().models[0]
    unmeasured = {"value_consistency": model.value_consistency.model_copy(update=dict(UNMEASURED))}
    rows = figure_rows([model.model_copy(update=unmeasured)], PRIMARIES)

    assert ("value_consistency", "both") not in {(row.measure, row.language) for row in rows}
    assert ("value_consistency", "zh") in {(row.measure, row.language) for row in rows}


def test_every_endpoint_has_a_name_and_a_direction():
    """So that better and worse mean something."""
    assert all(MEASURES[measure].wanted in ("high", "low") for measure in PRIMARIES)
