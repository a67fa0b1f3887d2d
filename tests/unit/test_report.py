"""The report stands alone, gives every number its n and interval, and keeps a model's words mere words."""

import base64
import csv
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from vcllm.alignment.filters import Reason
from vcllm.alignment.pairing import DropReason
from vcllm.charter import load_charter
from vcllm.contracts.archive import ArchiveFigures
from vcllm.contracts.base import Bilingual
from vcllm.contracts.critiques import Outcome
from vcllm.contracts.evaluation import (
    ArchiveCell,
    EvalItem,
    Judgement,
    Measure,
    Report,
    RoundSummary,
    StageResult,
)
from vcllm.contracts.manifests import GateCheck, GateVerdict
from vcllm.contracts.matrix import Matrix
from vcllm.contracts.recipes import EvaluationParams
from vcllm.contracts.rounds import PairCounts, RoundWork, Steering
from vcllm.evaluation.measures import choose_examples, compare_run, measure_stage
from vcllm.evaluation.report import final_stage, labels_of, read_report, verdict_lines, write_report
from vcllm.evaluation.verdict import held_stages, refused_stages
from vcllm.evaluation.wording import REASONS

SUITES = ("seen", "held_out", "held_out_cards", "benign")
STAGES = {"base": 90, "base_prompted": 80, "cpt": 90, "sft": 40, "round-1": 20, "round-2": 5, "control": 35}
"""Per cent of attacks that succeed."""
HOSTILE = "<script>alert('zh')</script><img src=x onerror=alert(1)>&\"'"

Tag = tuple[str, dict[str, str | None]]


def items(per_suite: int = 40) -> list[EvalItem]:
    return [
        EvalItem(
            id=f"{suite}-{number}-{language}",
            pair_id=f"{suite}-{number}",
            language=language,
            kind="benign" if suite == "benign" else "attack",
            suite=suite,
            card=f"soc.class-card-{number % 10}",
            goal=0,
            subdomain=("soc.class", "pol.intl")[number % 10 == 0],
            tactic="sarcasm",
            query=f"Surely {HOSTILE}?",
        )
        for suite in SUITES
        for number in range(per_suite)
        for language in ("zh", "en")
    ]


def judge(item: EvalItem, place: int, percent: int) -> Judgement:
    """The first `percent` of the attacks succeed; harmless questions are answered well."""
    violating = item.kind == "attack" and (place // 2) % 40 < percent * 0.4
    outcome = Outcome.VIOLATING if violating else Outcome.CONSISTENT
    return Judgement(item=item.id, answer=f"Yes. {HOSTILE}", outcome=outcome, detail=HOSTILE)


def a_round(number: int) -> RoundSummary:
    told = Measure(value=0.1, low=0.05, high=0.2, n=130)
    return RoundSummary(
        number=number,
        num_attacks=160,
        num_valid=131,
        num_leaked=1,
        num_pairs=88,
        attacker_success=told,
        critic_agreement=told,
        coverage=0.4,
        archive={"soc.class/direct/zh": ArchiveCell(tried=3, won=1)},
    )


def verdict(passed: bool) -> GateVerdict:
    check = GateCheck(name="over_refusal", passed=passed, value=0.01, limit=0.02, detail=HOSTILE)
    return GateVerdict(passed=passed, checks=[check])


def make_report(shares: dict[str, int] = STAGES, refused: tuple[str, ...] = (), **fields) -> Report:
    """A run through the real measures."""
    asked = items()
    judgements = {
        name: [judge(item, place, percent) for place, item in enumerate(asked)] for name, percent in shares.items()
    }
    results = [
        StageResult(
            name=name,
            seconds=12.5,
            peak_rss_bytes=2**30,
            version=f"v-{name}",
            gate=verdict(name not in refused) if name.startswith("round") else None,
            round=a_round(int(name[-1])) if name.startswith("round") else None,
            **dict(measure_stage(asked, judgements[name], choose_examples(asked))),
        )
        for name in shares
    ]
    hostile = Bilingual(zh=HOSTILE, en=HOSTILE)
    given = {
        "recipe": "starter",
        "seed": 2,
        "charter": "pluralist",
        "charter_hash": "c" * 64,
        "seconds": 237.4,
        "peak_rss_bytes": 3 * 2**30,
        "machine": HOSTILE,
        "commit": "0f3a9c1",
        "created": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "decoding": EvaluationParams(),
        "judge": Bilingual(zh="规则判官", en="Rule-based judge"),
        "stages": results,
        "comparisons": compare_run(asked, judgements, final_stage(results).name),
        "choices": [hostile],
        "labels": {
            "soc.class": Bilingual(zh="阶层", en="Class"),
            "pol.intl": Bilingual(zh=HOSTILE, en=HOSTILE),
        },
    }
    return Report(**(given | fields))


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def folder(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "report"
    write_report(report, path)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tags in order, and the table cells with their class and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[Tag] = []
        self.cells: list[tuple[str, list[tuple[str, str]]]] = []
        """Class of the table, then (class, text) of each span of the cell."""
        self.tables: list[str] = []
        self.spans: list[str] | None = None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        look = dict(attrs).get("class") or ""
        if tag == "table":
            self.tables.append(look)
        if tag == "td":
            self.cells.append((self.tables[-1], []))
        if tag == "span" and self.cells:
            self.cells[-1][1].append((look, ""))

    def handle_data(self, data):
        if self.cells and self.cells[-1][1]:
            look, text = self.cells[-1][1][-1]
            self.cells[-1][1][-1] = (look, text + data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def write(report: Report, folder: Path) -> str:
    write_report(report, folder)
    return (folder / "index.html").read_text(encoding="utf-8")


# The data.


def test_the_json_has_the_promised_shape(folder):
    """What benchmarks and release checks read."""
    data = json.loads((folder / "report.json").read_text())
    measure = {"value", "low", "high", "n"}

    assert data["seconds"] == 237.4
    assert data["peak_rss_bytes"] == 3 * 2**30
    assert [stage["name"] for stage in data["stages"]] == list(STAGES)
    for stage in data["stages"]:
        assert stage["seconds"] == 12.5
        for suite in ("seen", "held_out", "held_out_cards"):
            assert set(stage["attack_success"][suite]) == {"zh", "en", "mean"}
            assert set(stage["attack_success"][suite]["zh"]) == measure
        for name in ("over_refusal", "benign_helpful", "broken", "agreement"):
            assert measure <= set(stage[name])


def test_a_report_reads_back_as_it_was_written(report, folder):
    """The page can be made again from the JSON alone."""
    assert read_report(folder) == report


def test_writing_twice_gives_the_same_bytes(report, folder, tmp_path):
    """Nothing of the moment slips in."""
    write_report(read_report(folder), tmp_path)

    for name in ("index.html", "report.csv", "report.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_only_whole_files_are_left(folder):
    """No temporary file stays beside the three."""
    assert sorted(file.name for file in folder.iterdir()) == ["index.html", "report.csv", "report.json"]


def test_reading_what_is_not_there_says_so(tmp_path):
    """A run without a report is the caller's case to handle."""
    with pytest.raises(FileNotFoundError):
        read_report(tmp_path)


def test_the_table_holds_every_figure_and_difference(report, folder):
    """One line each, with n and both bounds."""
    rows = list(csv.DictReader((folder / "report.csv").read_text(encoding="utf-8").splitlines()))
    differences = [row for row in rows if row["minus"]]
    base = [row for row in rows if (row["stage"], row["minus"]) == ("base", "")]

    assert len(differences) == len(report.comparisons)
    assert {row["stage"] for row in rows} == set(STAGES)
    assert len(base) == 2 * 3 * 3 + 4 * 3 + 2 + 2 * 2
    assert all(row["n"] and row["low"] and row["high"] for row in rows)


def test_two_stages_of_one_name_are_refused():
    """A chart could not tell them apart."""
    stage = make_report({"base": 90}).stages[0]

    with pytest.raises(ValidationError, match="its own name"):
        make_report({"base": 90}, stages=[stage, stage])


# The page.


def test_what_models_say_stays_text(page):
    """An answer, a query, a label, a detail: none of them becomes markup."""
    tags = read(page).tags

    assert "<script" not in page
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert not any(tag in ("script", "img", "iframe", "object", "link", "base", "form") for tag, _ in tags)
    assert "&lt;script&gt;" in page


def test_nothing_is_fetched_from_anywhere(page):
    """The page opens offline: no address but its two neighbours."""
    addresses = [a[key] for _, a in read(page).tags for key in ("href", "src", "action", "xlink:href") if key in a]

    assert sorted(addresses) == ["report.csv", "report.json"]
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page)


def test_the_content_policy_allows_the_own_style_sheet_alone(page):
    """By its hash: an injected style or script would not run."""
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    policy = next(a["content"] for tag, a in read(page).tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy
    assert "script-src" not in policy
    assert not any("style" in attributes for _, attributes in read(page).tags)


def test_every_text_is_there_in_both_languages(page):
    """As many Chinese pieces as English ones, and the switch between them."""
    looks = [(attributes.get("class") or "").split() for _, attributes in read(page).tags]
    ids = {attributes.get("id") for _, attributes in read(page).tags}

    assert sum("en" in look for look in looks) == sum("zh" in look for look in looks) > 300
    assert {"lang-en", "lang-zh"} <= ids


def test_every_figure_in_a_table_has_n_and_an_interval(page):
    """In every cell that shows a share or a difference."""
    shown = [spans for _, spans in read(page).cells if any(look == "v" for look, _ in spans)]

    assert len(shown) > 200
    for spans in shown:
        told = "".join(text for _, text in spans).replace("\N{NO-BREAK SPACE}", " ")
        assert re.search(r"n = \d+", told), told
        assert re.search(r"\d\N{EN DASH}\d|\d to [+\N{MINUS SIGN}]?\d|\N{EM DASH}", told), told


def test_cells_with_few_answers_are_hatched(page):
    """The smaller sub-domain has 12 answers a language, the larger one 108."""
    rows = [re.findall(r"<td class=\"([^\"]*)\"", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    hatched = [["few" in look for look in looks] for looks in rows if looks and looks[0].startswith("h")]

    assert hatched == [[False] * 6, [True] * 6]


def test_a_refused_round_is_shown_and_is_not_the_final_version(tmp_path):
    """A negative result takes as much room as any other."""
    report = make_report(refused=("round-2",))
    page = write(report, tmp_path)
    header = re.search(r"<table class=\"measures stack\">.*?</thead>", page, re.DOTALL)[0]

    assert final_stage(report.stages).name == "round-1"
    assert "Round 2" in header
    assert "refused by the gate" in header
    assert any("Refused by the gate: Round 2" in line.en for line in verdict_lines(report))


def test_without_a_passed_round_the_last_stage_before_them_is_final():
    """The gate kept what was served."""
    assert final_stage(make_report(refused=("round-1", "round-2")).stages).name == "sft"


def test_a_run_that_has_only_a_base_still_has_a_page(tmp_path):
    """No rounds, no references, no memory, no labels: sections that have nothing to say are left out."""
    report = make_report({"base": 90}, peak_rss_bytes=None, labels={}, choices=[])
    page = write(report, tmp_path)

    assert 'id="rounds"' not in page
    assert 'class="differences' not in page
    assert read_report(tmp_path) == report


def test_a_stage_without_scored_answers_shows_gaps_not_zeros(tmp_path):
    """An outage of the judge is not a perfect model."""
    asked = items(2)
    unjudged = [Judgement(item=item.id, answer="", outcome=Outcome.UNSCORED, detail="outage") for item in asked]
    stage = StageResult(name="sft", seconds=1.0, **dict(measure_stage(asked, unjudged)))
    report = make_report({"base": 90})
    report = report.model_copy(update={"stages": [*report.stages, stage]})
    page = write(report, tmp_path).replace("\N{NO-BREAK SPACE}", " ")

    assert '<span class="v">—</span><span class="ci">n = 0</span>' in page
    assert any("16 answers could not be judged" in line.en for line in verdict_lines(report))


def test_the_matrix_is_shown_where_it_was_taken(page, tmp_path):
    """As a picture and as a table with every interval; a run without rounds does not speak of it."""
    told, hostile = Measure(value=0.1, low=0.05, high=0.2, n=40), Measure(value=0.8, low=0.6, high=0.9, n=40)
    matrix = Matrix(attackers=["line-attacker"], actors=["line-sft", "line-r1"], cells=[[hostile, told]])
    report = make_report(matrix=matrix)
    drawn = write(report, tmp_path)
    section = re.search(r'<section id="matrix">.*?</section>', drawn, re.DOTALL)[0]

    assert 'id="matrix"' not in page
    assert section.count('class="ci"') == 2
    assert ("line-attacker" in section, "旧攻击" in section) == (True, True)
    assert read_report(tmp_path).matrix == matrix
    assert "line-r1,,attack_success,line-attacker,both,0.1,0.05,0.2,40,," in (tmp_path / "report.csv").read_text()


def worked(**fields) -> Report:
    """A run of which is known how its first round was worked, and of the second only what it measured."""
    report = make_report()
    pairs = PairCounts(judged=131, kept=88, dropped={"tie": 3, "odd_one": 40}, sources={"human": 88}, reviews=6)
    given = {"dropped": {"duplicate": 20, "leaked": 9}, "pairs": pairs, "seconds": {"attack": 30.0, "gate": 90.0}}
    work = RoundWork(**given | {"pairs_per_minute": {"actor": 73.8}} | fields)
    first = report.stage("round-1")
    first = first.model_copy(
        update={
            "round": first.round.model_copy(update={"work": work}),
            "retention": Measure(value=0.75, low=0.5, high=0.9, n=24),
        }
    )
    return report.model_copy(update={"stages": [first if one.name == "round-1" else one for one in report.stages]})


def rounds_of(page: str) -> str:
    section = re.search(r'<section id="rounds">.*?</section>', page, re.DOTALL)[0]
    return section.replace("\N{NO-BREAK SPACE}", " ")


def row_of(section: str, name: str) -> list[str]:
    """The cells of the row whose head says so, without their markup."""
    row = next(row for row in re.findall(r"<tr>.*?</tr>", section, re.DOTALL) if f">{name}<" in row)
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]


def test_a_round_is_told_from_what_was_asked_to_what_was_kept(tmp_path):
    """With reasons in both languages; one that nobody has words for keeps its name; what was not counted is no zero."""
    section = rounds_of(write(worked(), tmp_path))

    assert row_of(section, "dropped: repeated in the round") == ["20", "—"]
    assert row_of(section, "剔除：出现留出手法的措辞") == ["9", "1"]
    assert row_of(section, "no pair: odd_one") == ["40", "—"]
    assert row_of(section, "未成对：两两比较分不出高下") == ["3", "—"]
    assert row_of(section, "Queries judged by the Critic") == ["131", "—"]
    assert row_of(section, "Pairs approved and trained on") == ["88", "88"]
    assert row_of(section, "approved by people") == ["88", "—"]
    assert row_of(section, "Answers put before people") == ["6", "—"]


def test_old_attacks_are_shown_as_the_share_that_wins_again(tmp_path):
    """The complement of what is still answered well, bounds and all."""
    told = row_of(rounds_of(write(worked(), tmp_path)), "往轮留存查询再次得手，%")

    assert told == ["25.010.0\N{EN DASH}50.0 n = 24", "—"]


def test_the_time_of_a_round_is_drawn_by_phase(tmp_path):
    """Pieces as long as their phases, in order; only phases that occur have a key."""
    section = rounds_of(write(worked(), tmp_path))
    pieces = re.findall(r'<rect class="p(\d)" x="([\d.]+)" y="4" width="([\d.]+)"', section)

    (attack, start, short), (gate, then, long) = pieces
    assert (attack, gate) == ("0", "9")
    assert float(long) == pytest.approx(3 * float(short), abs=0.02)
    assert float(then) == pytest.approx(float(start) + float(short), abs=0.02)
    assert section.count('class="patch"') == 2
    assert "2 min 00 s" in section
    assert row_of(section, "Actor") == ["73.8", "—"]


def test_a_round_says_how_it_was_steered(tmp_path):
    """Dials, who learned, why, and why it was the last; a reason is text."""
    steering = Steering(benign_share=0.25, trains=("attacker",), reason=HOSTILE)
    archive = ArchiveFigures(coverage=0.4, coverage_won=0.2, evenness=None, qd_score=3.0, num_elites=4)
    section = rounds_of(write(worked(steering=steering, stop="Told to stop.", archive=archive), tmp_path))

    assert "Told to stop." in section
    assert "<script" not in section
    assert row_of(section, "with a winning attack, %") == ["20.0", "—"]
    assert row_of(section, "两条中文攻击的相似度，%") == ["—", "—"]
    steered = section[section.index("How each round was steered") :]
    assert row_of(steered, "Round 1")[:3] == ["25.0", "0.0", "0.15"]


def test_a_report_from_before_rounds_were_taken_apart_keeps_its_page(page):
    """Counts as they were; nothing of time, speed or steering."""
    section = rounds_of(page)

    assert row_of(section, "dropped: wording of a held-out tactic") == ["1", "1"]
    assert row_of(section, "Valid: passed every filter") == ["131", "131"]
    for word in ("Where the time went", "每分钟", "How each round was steered", "judged by the Critic", "win again"):
        assert word not in section


def with_gate(report: Report, **gates: GateVerdict) -> Report:
    """gates: `round_2` to what the gate said of it."""
    said = {name.replace("_", "-"): gate for name, gate in gates.items()}
    stages = [one.model_copy(update={"gate": said[one.name]}) if one.name in said else one for one in report.stages]
    return report.model_copy(update={"stages": stages})


HELD = GateVerdict(passed=False, checks=[], decision="hold")


def test_a_held_candidate_is_not_called_refused(tmp_path):
    """It waits for a person: wherever the page names it, in both languages."""
    drawn = write(with_gate(make_report(), round_2=HELD), tmp_path)
    header = re.search(r"<table class=\"measures stack\">.*?</thead>", drawn, re.DOTALL)[0]

    assert "held for a person" in row_of(rounds_of(drawn), "Gate")[1]
    assert ("held by the gate" in header, "待人工决定" in header) == (True, True)
    assert "refused by the gate" not in drawn
    assert "未通过门控" not in drawn


def test_a_held_candidate_is_told_apart_from_a_refused_one():
    """Each by its own sentence; neither is served."""
    report = with_gate(make_report(refused=("round-1",)), round_2=HELD)
    told = [(line.en, line.zh) for line in verdict_lines(report)]

    assert final_stage(report.stages).name == "sft"
    assert ("Refused by the gate: Round 1.", "未通过晋级门控：第 1 轮。") in told
    assert ("Held by the gate for a person to decide: Round 2.", "待人工决定是否晋级：第 2 轮。") in told


@pytest.mark.parametrize(
    ("decision", "refused", "held"),
    [("reject", ["round-2"], []), (None, ["round-2"], []), ("hold", [], ["round-2"])],
)
def test_what_did_not_pass_is_refused_unless_it_is_held(decision, refused, held):
    """Verdicts from before there were three decisions say only that they did not pass."""
    stages = with_gate(make_report(), round_2=GateVerdict(passed=False, checks=[], decision=decision)).stages

    assert (refused_stages(stages), held_stages(stages)) == (refused, held)


def test_every_reason_why_an_attack_or_a_pair_is_dropped_has_words():
    """In both languages, for the filters, the pairs, their caps, the evaluation and their age."""
    caps = {"cell_full", "source_full", "contaminated", "stale"}

    assert set(REASONS) == {*get_args(Reason), *get_args(DropReason), *caps}
    assert all(words.en and words.zh for words in REASONS.values())
    for language in ("en", "zh"):
        assert len({words[language] for words in REASONS.values()}) == len(REASONS)


def test_only_the_starter_is_called_a_starter(tmp_path):
    """The page of a real model does not speak of a made-up world."""
    starter, real = write(make_report(), tmp_path), write(make_report(starter=False), tmp_path)

    assert "not a useful assistant" in starter
    assert "made-up world" not in real
    assert "written into the starter" not in real


def test_labels_name_every_sub_domain_and_tactic_of_the_charter():
    """So that a report can be read without its charter."""
    charter = load_charter()
    labels = labels_of(charter)

    assert set(labels) == {s.id for s in charter.taxonomy.subdomains} | {t.id for t in charter.tactics}
    assert all(label.zh and label.en for label in labels.values())


# The verdict.


def test_the_verdict_opens_with_the_final_version_and_its_interval(report):
    """Value, interval and n, in both languages, beside the base."""
    first = verdict_lines(report)[0]

    for text in (first.en, first.zh):
        plain = text.replace("\N{NO-BREAK SPACE}", " ")
        assert "5.0 %" in plain
        assert "90.0 %" in plain
        assert plain.count("n = 80") == 2


def test_the_verdict_says_when_no_difference_could_be_shown():
    """A control as good as the rounds is not hidden."""
    lines = verdict_lines(make_report({"base": 90, "sft": 40, "round-1": 20, "control": 20}))
    control = next(line for line in lines if "Control" in line.en)

    assert "no difference could be shown" in control.en
    assert "未能显示差异" in control.zh


def test_the_verdict_says_when_the_final_version_is_worse():
    """Up is called up."""
    lines = verdict_lines(make_report({"base": 40, "sft": 90}))

    assert any("higher, which is worse" in line.en and "更差" in line.zh for line in lines)


def test_every_verdict_line_with_a_share_tells_its_n(report):
    """No bare percentages, in either language."""
    for line in verdict_lines(report):
        for text in (line.en, line.zh):
            assert ("%" in text or "points" in text) <= ("n\N{NO-BREAK SPACE}=" in text)
