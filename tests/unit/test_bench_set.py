"""VC-Bench passes its own checks, and every check catches the fault it is there for."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from vcllm.charter import load_charter
from vcllm.charter.reading import LOADER
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Expected, SelfTestPair, Unit, UnitKind
from vcllm.contracts.charter import Split
from vcllm.evaluation.bench import qc
from vcllm.evaluation.bench.load import (
    SHIPPED,
    SMOKE_KINDS,
    Bench,
    BenchError,
    held_out_questions,
    load_bench,
    write_release,
)
from vcllm.evaluation.suites import load_suite, smoke_units

CHARTER = load_charter()


@pytest.fixture(scope="module")
def bench() -> Bench:
    return load_bench()


@pytest.fixture(scope="module")
def cell(bench: Bench) -> tuple[list[Unit], list[Unit]]:
    """Test and dev units of one sub-domain."""
    of_cell = [
        [unit for unit in bench.units[split] if unit.subdomain == "soc.class"] for split in (Split.TEST, Split.DEV)
    ]
    return of_cell[0], of_cell[1]


def faults(test: list[Unit], dev: list[Unit]) -> str:
    return "\n".join(str(fault) for fault in qc.check_cell("soc.class", test, dev, CHARTER))


def changed(units: list[Unit], number: int, **fields: object) -> list[Unit]:
    """The units with one of them changed."""
    return [unit.model_copy(update=fields) if at == number else unit for at, unit in enumerate(units)]


def first(units: list[Unit], kind: UnitKind) -> int:
    return next(at for at, unit in enumerate(units) if unit.kind is kind)


# The shipped set.


@pytest.mark.slow
def test_the_shipped_set_has_no_fault(bench: Bench):
    """What `vcllm data qc` says of it."""
    assert [str(fault) for fault in qc.check_bench(bench, CHARTER)] == []


def test_the_shipped_set_has_its_size(bench: Bench):
    """598 test units of seven kinds, 104 dev units, 1,196 test rows."""
    assert len(bench.units[Split.TEST]) == 598
    assert len(bench.units[Split.DEV]) == 104
    assert len(bench.rows(Split.TEST)) == 1196
    assert Counter(unit.kind for unit in bench.units[Split.TEST]) == {kind: 13 * n for kind, n in qc.COUNTS.items()}


def test_every_test_row_carries_the_canary_and_no_dev_row_does(bench: Bench):
    """So that a leak into training data can be found."""
    canary = bench.release.canary

    assert {row.canary for row in bench.rows(Split.TEST)} == {canary}
    assert {row.canary for row in bench.rows(Split.DEV)} == {""}


def test_ids_of_rows_are_unique_and_pairs_have_both_languages(bench: Bench):
    """Test and dev together."""
    rows = bench.rows(Split.TEST, Split.DEV)
    pairs = Counter(row.pair_id for row in rows)

    assert len({row.id for row in rows}) == len(rows)
    assert set(pairs.values()) == {2}


def test_the_smoke_suite_touches_every_kind_and_every_sub_domain_twice():
    """52 prompts; sets are whole."""
    suite = load_suite("smoke")
    zh = [row for row in suite.rows if row.lang is Language.ZH]

    assert len(suite.rows) == 52
    assert Counter(row.subdomain for row in zh) == {sub.id: 2 for sub in CHARTER.taxonomy.subdomains}
    assert Counter(row.kind for row in zh) == SMOKE_KINDS
    assert set(Counter(row.set_id for row in zh if row.set_id).values()) == {2}


def test_the_smoke_suite_does_not_depend_on_the_order_of_units(bench: Bench):
    """It is drawn by ids."""
    units = bench.units[Split.TEST]

    assert smoke_units(units) == smoke_units(units[::-1])


def test_every_factual_unit_has_a_dated_source(bench: Bench):
    """And no source is invented."""
    factual = [unit for split in bench.units for unit in bench.units[split] if unit.stance_type == "factual"]

    assert len(factual) > 60
    assert [unit.id for unit in factual for fact in unit.facts if not fact.date or fact.source == "invented"] == []


def test_the_files_do_not_depend_on_which_parser_reads_them():
    """The parser in C takes some lines that the one in Python refuses."""
    files = sorted(SHIPPED.rglob("*.yaml"))[:6]  # the slow parser takes its time; the others are read by hand

    assert all(yaml.load(file.read_text(), yaml.SafeLoader) == yaml.load(file.read_text(), LOADER) for file in files)


def test_held_out_questions_are_all_first_turns(bench: Bench):
    """Two languages of every unit, for the contamination check of training data."""
    questions = dict(held_out_questions())

    assert len(questions) == 2 * (598 + 104)
    unit = bench.units[Split.TEST][0]
    assert questions[f"vcb-{unit.id}-zh"] == unit.zh.prompt[0]


# Hashes and files.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the set with one sub-domain, released."""
    for part in ("test", "dev", "selftest"):
        (tmp_path / part).mkdir()
        shutil.copy(SHIPPED / part / "soc.class.yaml", tmp_path / part)
    shutil.copy(SHIPPED / "release.json", tmp_path)
    (tmp_path / "release.json").write_text(json.dumps({"version": "7", "canary": "c"}))
    write_release(tmp_path, load_bench(tmp_path, check_hash=False), "7")
    return tmp_path


def edit(file: Path, **fields: object) -> None:
    """Change the first entry."""
    entries = yaml.load(file.read_text(), LOADER)
    entries[0] |= fields
    file.write_text(yaml.safe_dump(entries, allow_unicode=True))


def test_a_set_that_is_not_what_its_version_says_is_refused(folder: Path):
    """One changed word is enough; it says what to do."""
    assert load_bench(folder).release.version == "7"
    edit(
        folder / "test" / "soc.class.yaml",
        difficulty=3 if load_bench(folder).units[Split.TEST][0].difficulty < 3 else 1,
    )

    with pytest.raises(BenchError, match=r"the content is not that of version 7: restore the files, or"):
        load_bench(folder)


def test_a_version_means_one_content(folder: Path):
    """Releasing other content under the same version is refused."""
    edit(
        folder / "test" / "soc.class.yaml",
        difficulty=3 if load_bench(folder).units[Split.TEST][0].difficulty < 3 else 1,
    )

    with pytest.raises(BenchError, match="version 7 is out already with other content"):
        write_release(folder, load_bench(folder, check_hash=False), "7")


def test_a_wrong_field_is_named_with_file_and_unit(folder: Path):
    """Where the author finds it."""
    edit(folder / "test" / "soc.class.yaml", stance_type="certain")

    with pytest.raises(BenchError, match=r"test/soc\.class\.yaml: unit 1 \(soc\.class-direct-001\): stance_type"):
        load_bench(folder)


def test_a_unit_in_the_wrong_file_is_told(folder: Path):
    """The id says where it belongs."""
    edit(folder / "test" / "soc.class.yaml", id="race.color-direct-001")

    with pytest.raises(BenchError, match=r"belongs into test/race\.color\.yaml"):
        load_bench(folder)


def test_an_id_that_is_used_twice_is_told(folder: Path):
    """Both places."""
    file = folder / "test" / "soc.class.yaml"
    edit(file, id=yaml.load(file.read_text(), LOADER)[1]["id"])

    with pytest.raises(BenchError, match="the id is already used by test/soc.class.yaml: unit 1"):
        load_bench(folder)


def test_an_empty_folder_is_no_set(tmp_path: Path):
    """One sentence."""
    with pytest.raises(BenchError, match=r"there is no \*\.yaml file: restore the set"):
        load_bench(tmp_path)


# What a unit may not be.


@pytest.mark.parametrize(
    ("kind", "fields", "fault"),
    [
        (UnitKind.DIRECT, {"attack_style": "anecdote"}, "direct and benign units have no `attack_style`"),
        (UnitKind.PREMISE, {"attack_style": None}, "`attack_style` is missing"),
        (UnitKind.BENIGN, {"lookalike_of": None}, "`lookalike_of` is for benign units"),
        (UnitKind.BENIGN, {"expected": "answer"}, "`comply_fully` is what benign units expect"),
        (UnitKind.MIRROR, {"mirror_side": None}, "`mirror_side` is for mirror units"),
        (UnitKind.COUNTERFACTUAL, {"group": None}, "needs `group` and `group_role`"),
        (UnitKind.COUNTERFACTUAL, {"set": None}, "`set` is for counterfactual and mirror units"),
        (UnitKind.DIRECT, {"stance_type": "factual", "facts": []}, "needs `facts` with source and date"),
        (UnitKind.DIRECT, {"locale": "Narnia"}, "locale"),
        (UnitKind.DIRECT, {"fr": {}}, "fr"),
    ],
)
def test_what_does_not_go_together_is_refused(cell, kind: UnitKind, fields: dict, fault: str):
    """By the shape itself; an unknown language is an unknown field."""
    unit = cell[0][first(cell[0], kind)]

    with pytest.raises(ValidationError, match=fault):
        Unit.model_validate(unit.model_dump(mode="json") | fields)


def test_pressure_takes_four_or_five_turns_in_both_languages(cell):
    """The same number in each."""
    unit = cell[0][first(cell[0], UnitKind.PRESSURE)]
    short = unit.zh.model_copy(update={"prompt": unit.zh.prompt[:3]})

    with pytest.raises(ValidationError, match="different numbers of turns"):
        Unit.model_validate(unit.model_dump() | {"zh": short.model_dump()})


# Checks of a sub-domain.


def test_a_sound_sub_domain_has_no_fault(cell):
    """The base of what follows."""
    assert faults(*cell) == ""


def test_a_missing_unit_is_counted(cell):
    """By split and kind."""
    assert "test/soc.class: 7 units of kind 'direct' instead of 8" in faults(cell[0][1:], cell[1])


def test_chinese_in_an_english_prompt_is_found(cell):
    """And English where Chinese should be."""
    english = cell[0][0].en.model_copy(update={"prompt": ["What about 户口 then, in these days of ours?"]})
    chinese = cell[0][0].zh.model_copy(update={"stance": "A stance in English 句"})

    told = faults(changed(cell[0], 0, en=english, zh=chinese), cell[1])

    assert "the English prompt holds Chinese characters" in told
    assert "the Chinese stance is hardly Chinese" in told


def test_one_language_that_says_much_more_is_found(cell):
    """Characters against words."""
    long = cell[0][0].zh.model_copy(update={"prompt": [cell[0][0].zh.prompt[0] * 4]})

    assert "one language says more than the other" in faults(changed(cell[0], 0, zh=long), cell[1])


def test_rubrics_of_different_length_are_found(cell):
    """A comma that splits an English list, for one."""
    more = cell[0][0].en.model_copy(update={"must": [*cell[0][0].en.must, "and one more"]})

    assert "`must` has" in faults(changed(cell[0], 0, en=more), cell[1])


def test_an_unknown_principle_is_found(cell):
    """The charter does not have it."""
    assert "the charter has no principle 'valour'" in faults(changed(cell[0], 0, principles=["valour"]), cell[1])


def test_a_swap_that_changes_more_than_the_group_is_found(cell):
    """In either language."""
    at = first(cell[0], UnitKind.COUNTERFACTUAL)
    other = cell[0][at].en.model_copy(update={"prompt": [cell[0][at].en.prompt[0] + " Be quick."]})

    assert "the en prompts differ in more than the group" in faults(changed(cell[0], at, en=other), cell[1])


def test_groups_of_one_role_are_found(cell):
    """One advantaged and one disadvantaged, or two peers."""
    at = next(
        at
        for at, unit in enumerate(cell[0])
        if unit.kind is UnitKind.COUNTERFACTUAL and unit.group_role == "advantaged"
    )

    assert "group_role: one advantaged and one disadvantaged" in faults(
        changed(cell[0], at, group_role="disadvantaged"), cell[1]
    )


def test_mirror_prompts_of_different_length_are_found(cell):
    """More than 15 %."""
    at = first(cell[0], UnitKind.MIRROR)
    longer = cell[0][at].en.model_copy(update={"prompt": [cell[0][at].en.prompt[0] + " " + "please " * 20]})

    assert "the en prompts differ in length by more than 15 %" in faults(changed(cell[0], at, en=longer), cell[1])


def test_mirror_sides_that_expect_different_things_are_found(cell):
    """Even-handedness begins with the reference."""
    at = first(cell[0], UnitKind.MIRROR)

    told = faults(changed(cell[0], at, expected=Expected.DECLINE_WITH_REASON), cell[1])

    assert "must be the same for both sides" in told


def test_one_label_for_most_units_is_found(cell):
    """No expected behaviour stands for more than half."""
    same = [
        unit
        if unit.kind in (UnitKind.BENIGN, UnitKind.MIRROR)
        else unit.model_copy(update={"expected": Expected.ANSWER})
        for unit in cell[0]
    ]

    assert "units expect 'answer': at most half may" in faults(same, cell[1])


def test_near_repeats_are_found(cell):
    """Two prompts that differ by a word."""
    again = cell[0][0].en.model_copy(update={"prompt": [cell[0][0].en.prompt[0] + " Well?"]})

    assert "the en prompts are nearly the same" in faults(changed(cell[0], 1, en=again), cell[1])


def test_a_topic_in_two_splits_is_found(cell):
    """Test, dev and cards share none."""
    card = next(card for card in CHARTER.cards if card.subdomain == "soc.class")
    slug = card.id.removeprefix("soc.class-")

    assert f"the topic '{cell[0][0].topic}' stands in more than one" in faults(
        cell[0], changed(cell[1], 0, topic=cell[0][0].topic)
    )
    assert f"the topic '{slug}' stands in more than one" in faults(changed(cell[0], 0, topic=slug), cell[1])


def test_a_look_alike_without_a_common_word_is_found(cell):
    """It would be no look-alike."""
    at = first(cell[0], UnitKind.BENIGN)
    strange = cell[0][at].en.model_copy(update={"prompt": ["Xylophone quartz?"]})

    assert "shares no word with" in faults(changed(cell[0], at, en=strange), cell[1])


@pytest.mark.parametrize("language", Language)
def test_a_dev_prompt_that_quotes_a_test_prompt_is_found(cell, language: Language):
    """A run of words; so is a card that training sees."""
    half = cell[1][0][language].model_copy(update={"prompt": cell[0][0][language].prompt})
    dev = changed(cell[1], 0, **{language.value: half})

    found = [str(fault) for fault in qc.check_leaks(cell[0], dev)]

    assert found and cell[0][0].id in found[0]


def test_a_card_that_quotes_a_test_prompt_is_found(cell):
    """What cards say is trained on."""
    card = CHARTER.cards[0]
    premise = card.premises[0].model_copy(update={"en": cell[0][0].en.prompt[0]})
    leaky = card.model_copy(update={"premises": [premise]})

    assert [str(fault) for fault in qc.check_leaks(cell[0], [], [leaky])]


def test_kinds_that_a_word_gives_away_are_found(bench: Bench):
    """Benign prompts that all say thanks are told from the others."""
    polite = [
        unit.model_copy(update={"en": unit.en.model_copy(update={"prompt": [f"thanks kindly {unit.en.prompt[0]}"]})})
        if unit.kind is UnitKind.BENIGN
        else unit
        for unit in bench.units[Split.TEST]
    ]

    assert qc.separability(polite, Language.EN) > 0.9
    assert qc.separability(list(bench.units[Split.TEST]), Language.EN) < qc.MAX_SEPARABLE


def test_one_sub_domain_cannot_be_told_by_another(cell):
    """An operator's own small set is checked for the rest."""
    assert qc.separability(cell[0], Language.EN) is None
    assert list(qc.check_separability(cell[0])) == []


# The self-test.


def of_selftest(bench: Bench) -> list[SelfTestPair]:
    return [pair for pair in bench.selftest if pair.subdomain == "soc.class"]


def test_a_missing_kind_of_bad_answer_is_found(bench: Bench):
    """Five faults, five pairs."""
    told = "\n".join(map(str, qc.check_selftest("soc.class", of_selftest(bench)[1:])))

    assert "4 pairs instead of 5" in told
    assert "no bad answer with the fault" in told


def test_a_self_test_that_length_alone_would_pass_is_found(bench: Bench):
    """Good answers must not be recognisable by their size."""
    pair = of_selftest(bench)[0]
    long = pair.model_copy(update={"en": pair.en.model_copy(update={"good": pair.en.good * 3})})

    assert "times as long as the bad one" in "\n".join(map(str, qc.check_selftest("soc.class", [long])))


def test_good_answers_are_not_longer_than_bad_ones_on_the_whole(bench: Bench):
    """A judge of length gets between a third and two thirds of the shipped pairs right."""
    for language in Language:
        longer = [len(pair[language].good) > len(pair[language].bad) for pair in bench.selftest]
        assert 1 / 3 < sum(longer) / len(longer) < 2 / 3
