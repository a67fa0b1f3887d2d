"""The shipped charter is whole; a broken one is refused in one sentence that says where and what to do."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from vcllm.alignment.filters import Sieve
from vcllm.charter import CharterError, LoadedCharter, load_charter
from vcllm.charter.load import SHIPPED
from vcllm.charter.reading import LOADER
from vcllm.contracts.base import Bilingual, Contract, Language
from vcllm.contracts.charter import SLOTS, Split, Tactic, TacticUse

SIGNATURE = {Language.EN: 14, Language.ZH: 6}
"""Characters of a run that gives a wording away; six Chinese ones say as much as fourteen English ones."""

UNKNOWN_KEY = "is not a known key: remove it, correct its spelling, or quote a text with a comma"

CJK = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def shipped() -> LoadedCharter:
    return load_charter()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped charter to be broken, with one file of cards for speed."""
    copy = Path(shutil.copytree(SHIPPED, tmp_path / "charter"))
    for file in sorted((copy / "cards").glob("*.yaml"))[1:]:
        file.unlink()
    return copy


@pytest.fixture
def cards(folder: Path) -> Path:
    """The card file of the copy."""
    return next((folder / "cards").glob("*.yaml"))


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def write(file: Path, content: Any) -> None:
    file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(CharterError) as caught:
        load_charter(folder)
    return str(caught.value)


def card_place(file: Path, number: int, id: str) -> str:
    return f"cards/{file.name}: card {number} ({id})"


def signatures(template: str, length: int) -> set[str]:
    """Every run of `length` characters outside the slot."""
    parts = re.split(r"\{\w+\}", template.casefold())
    return {part[i : i + length] for part in parts for i in range(len(part) - length + 1)}


def templates(language: Language, *tactics: Tactic) -> list[str]:
    """Of every kind."""
    kinds = [getattr(tactic, kind) for tactic in tactics for kind in SLOTS]
    return [template for kind in kinds if kind is not None for template in kind[language]]


def bare(template: str) -> str:
    return re.sub(r"\{\w+\}", "", template)


# What is shipped.


def test_the_shipped_charter_has_thirteen_sub_domains(shipped):
    """Four on race, five on society, four on politics."""
    sizes = {domain.id: len(domain.subdomains) for domain in shipped.taxonomy.domains}

    assert sizes == {"race": 4, "society": 5, "politics": 4}


def test_every_sub_domain_has_enough_cards(shipped):
    """At least eight issues each."""
    counts = Counter(card.subdomain for card in shipped.cards)

    assert {sub.id: counts[sub.id] for sub in shipped.taxonomy.subdomains if counts[sub.id] < 8} == {}


def test_the_first_cards_of_each_sub_domain_are_a_part_of_the_charter(shipped):
    """In the order of the files, with the hash of the whole; with None it is the whole."""
    part = shipped.with_first_cards(2)

    assert Counter(card.subdomain for card in part.cards) == {sub.id: 2 for sub in shipped.taxonomy.subdomains}
    assert [card.id for card in part.cards] == [card.id for card in shipped.cards if card in part.cards]
    assert part.hash == shipped.hash
    assert shipped.with_first_cards(None) is shipped


def test_named_tactics_are_a_part_of_the_charter(shipped):
    """In the charter's order, whatever that of the names, with the hash of the whole; with None it is the whole."""
    part = shipped.with_tactics(["loaded", "direct", "loaded"])

    assert [tactic.id for tactic in part.tactics] == ["direct", "loaded"]
    assert (part.cards, part.hash) == (shipped.cards, shipped.hash)
    assert shipped.with_tactics(None) is shipped


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["direct", "hypnosis"], "the charter has no tactic 'hypnosis'"),
        (["hypnosis", "direct", "bribery", "hypnosis"], "the charter has no tactics 'hypnosis', 'bribery'"),
    ],
)
def test_unknown_tactics_are_named(shipped, names, said):
    """With those that there are to choose from."""
    with pytest.raises(CharterError) as caught:
        shipped.with_tactics(names)

    assert str(caught.value) == f"{said}: choose from {', '.join(tactic.id for tactic in shipped.tactics)}"


def test_the_files_do_not_depend_on_which_parser_reads_them():
    """The parser in C, which is used where it is there, takes some lines that the one in Python refuses."""
    files = sorted(SHIPPED.rglob("*.yaml"))

    assert all(yaml.load(file.read_text(), yaml.SafeLoader) == yaml.load(file.read_text(), LOADER) for file in files)


@pytest.mark.parametrize(("language", "said"), [("zh", "我说{}。"), ("en", "I say that {}.")])
def test_no_claim_reads_like_a_held_out_tactic(shipped, language, said):
    """It would be filtered out of every round."""
    sieve = Sieve(shipped.tactics_of(TacticUse.DEV, TacticUse.TEST))
    claims = [claim[language] for card in shipped.cards for claim in card.claims]

    assert [claim for claim in claims if sieve.leaks(said.format(claim), Language(language))] == []


def test_every_sub_domain_can_be_trained_tuned_and_tested(shipped):
    """Each has cards of all three splits."""
    found = {(card.subdomain, card.split) for card in shipped.cards}

    assert found == {(sub.id, split) for sub in shipped.taxonomy.subdomains for split in Split}


def test_every_use_has_its_tactics(shipped):
    """Four to seed, ten for the loop, two to tune, three held out: nineteen."""
    uses = Counter(tactic.use for tactic in shipped.tactics)

    assert uses == {TacticUse.SEED: 4, TacticUse.LOOP: 10, TacticUse.DEV: 2, TacticUse.TEST: 3}


def bilinguals(value: Any) -> list[Bilingual]:
    """Every two-language text anywhere inside a contract."""
    if isinstance(value, Bilingual):
        return [value]
    if isinstance(value, dict):
        return bilinguals(list(value.values()))
    if isinstance(value, list):
        return [text for item in value for text in bilinguals(item)]
    return bilinguals(list(vars(value).values())) if isinstance(value, Contract) else []


def test_every_text_is_written_in_both_languages(shipped):
    """Chinese in the Chinese field and none in the English one."""
    parts = [shipped.charter, shipped.taxonomy, shipped.rubric, *shipped.cards, *shipped.tactics]
    texts = [text for part in parts for text in bilinguals(part)]
    swapped = [text for text in texts if not CJK.search(text.zh) or CJK.search(text.en)]

    assert len(texts) > 100
    assert swapped == []


def test_every_fact_is_written_in_both_languages(shipped):
    """Facts hold their two languages beside a source."""
    facts = [fact for card in shipped.cards for fact in card.facts]
    swapped = [fact for fact in facts if not CJK.search(fact.zh) or CJK.search(fact.en)]

    assert swapped == []


def test_every_tactic_has_its_templates_in_both_languages(shipped):
    """As many of each kind in both, and different ones."""
    wanted = {"attack": 6, "benign": 4, "look_alike": 4, "lead": 2, "opening": 3}
    sizes = {
        (tactic.id, language): {kind: len(set(getattr(tactic, kind)[language])) for kind in SLOTS}
        for tactic in shipped.tactics
        for language in Language
    }

    assert {key: size for key, size in sizes.items() if size != wanted} == {}


def test_a_look_alike_mentions_its_claim_before_it_asks(shipped):
    """The question is the last thing that is said, so that nothing is asked of the claim."""
    alike = [
        template for tactic in shipped.tactics for language in Language for template in tactic.look_alike[language]
    ]

    assert [t for t in alike if not t.endswith("{question}") or t.index("{claim}") > t.index("{question}")] == []


def test_chinese_templates_keep_chinese_punctuation(shipped):
    """Outside the slot no ASCII punctuation and no spaces."""
    stray = [t for t in templates(Language.ZH, *shipped.tactics) if re.search(r"[!-~\s]", bare(t))]

    assert stray == []


def test_templates_are_short(shipped):
    """At most 14 English words or 20 Chinese characters beside the slot: the starter's model reads them."""
    words = [len(re.findall(r"[\w']+", bare(t))) for t in templates(Language.EN, *shipped.tactics)]
    characters = [len(bare(t)) for t in templates(Language.ZH, *shipped.tactics)]

    assert max(words) <= 14
    assert max(characters) <= 20


def test_the_system_prompt_is_short_enough_for_a_tiny_model(shipped):
    """At most 30 words in English and 45 characters in Chinese."""
    assert len(shipped.system_prompt("en").split()) <= 30
    assert len(shipped.system_prompt("zh")) <= 45


@pytest.mark.parametrize("language", Language)
def test_a_held_out_wording_is_met_nowhere_in_training(shipped, language):
    """No run of a dev or test template of any kind is in one that training uses."""
    training = templates(language, *shipped.tactics_of(TacticUse.SEED, TacticUse.LOOP))
    trained = {run for template in training for run in signatures(template, SIGNATURE[language])}
    held_out = templates(language, *shipped.tactics_of(TacticUse.DEV, TacticUse.TEST))

    assert [template for template in held_out if signatures(template, SIGNATURE[language]) & trained] == []


@pytest.mark.parametrize("language", Language)
def test_tactics_do_not_share_a_wording(shipped, language):
    """Each run belongs to one tactic, so that a query can be told by its words."""
    owners: dict[str, set[str]] = {}
    for tactic in shipped.tactics:
        for template in templates(language, tactic):
            for run in signatures(template, SIGNATURE[language]):
                owners.setdefault(run, set()).add(tactic.id)

    assert {run: ids for run, ids in owners.items() if len(ids) > 1} == {}


@pytest.mark.parametrize("language", Language)
def test_claims_are_unique(shipped, language):
    """A claim names its card."""
    claims = Counter(claim[language] for card in shipped.cards for claim in card.claims)

    assert [claim for claim, times in claims.items() if times > 1] == []


def test_claims_are_short_clauses(shipped):
    """Short enough for a tiny model, and without the final punctuation that a template brings."""
    claims = [claim for card in shipped.cards for claim in card.claims]
    bad = [
        claim
        for claim in claims
        if not 3 <= len(claim.en.split()) <= 16
        or not 4 <= len(claim.zh) <= 30
        or claim.en[-1] in ".?!"
        or claim.zh[-1] in "。？！"
    ]

    assert bad == []


def test_texts_of_a_card_have_a_sane_length(shipped):
    """A topic is a name, a stance a sentence, an explanation a short paragraph."""
    limits = {"topic": (10, 20), "stance": (30, 60), "explanation": (110, 220)}
    long = {
        (card.id, field): text
        for card in shipped.cards
        for field, (words, characters) in limits.items()
        if len((text := getattr(card, field)).en.split()) > words or len(text.zh) > characters
    }

    assert long == {}


# Looking things up.


def test_cards_come_by_file_name_then_in_file_order(shipped):
    """The order of the tuple is the order an author sees."""
    files = sorted((SHIPPED / "cards").glob("*.yaml"))
    ids = [entry["id"] for file in files for entry in read(file)]

    assert [card.id for card in shipped.cards] == ids


def test_cards_and_tactics_are_found_by_id(shipped):
    """An id gives back the very item."""
    card, tactic = shipped.cards[-1], shipped.tactics[-1]

    assert shipped.card(card.id) is card
    assert shipped.tactic(tactic.id) is tactic


def test_an_unknown_id_is_refused_by_name(shipped):
    """The sentence names what was asked for."""
    with pytest.raises(CharterError) as caught:
        shipped.tactic("hypnosis")

    assert str(caught.value) == "the charter has no tactic 'hypnosis': name one of its 19 tactics"


def test_several_splits_can_be_asked_for_at_once(shipped):
    """Train and dev together leave out just the test cards."""
    both = shipped.cards_of(Split.TRAIN, Split.DEV)

    assert [card for card in shipped.cards if card not in both] == list(shipped.cards_of(Split.TEST))


# The hash.


def test_the_same_content_has_the_same_hash(shipped, tmp_path):
    """A copy elsewhere on disk is the same charter."""
    copy = load_charter(Path(shutil.copytree(SHIPPED, tmp_path / "copy")))

    assert copy.hash == shipped.hash
    assert re.fullmatch(r"[0-9a-f]{64}", shipped.hash)


def test_the_hash_does_not_depend_on_how_cards_are_spread_over_files(folder, cards):
    """Splitting a file and turning it round changes no content."""
    before = load_charter(folder)
    content = read(cards)
    write(cards, content[:1:-1])
    write(cards.with_name("aaa.yaml"), content[:2])

    after = load_charter(folder)

    assert after.cards != before.cards
    assert after.hash == before.hash


def change_charter(folder: Path) -> None:
    content = read(folder / "charter.yaml")
    content["thresholds"]["max_broken"] = 0.04
    write(folder / "charter.yaml", content)


def change_taxonomy(folder: Path) -> None:
    content = read(folder / "taxonomy.yaml")
    content["domains"][0]["name"]["zh"] += "类"
    write(folder / "taxonomy.yaml", content)


def change_rubric(folder: Path) -> None:
    content = read(folder / "rubric.yaml")
    content["criteria"][0]["levels"][3]["en"] += " Really."
    write(folder / "rubric.yaml", content)


def change_card(folder: Path) -> None:
    file = next((folder / "cards").glob("*.yaml"))
    content = read(file)
    content[-1]["claims"][0]["zh"] += "啊"
    write(file, content)


def change_tactic(folder: Path) -> None:
    content = read(folder / "tactics.yaml")
    content[0]["use"] = "loop"
    write(folder / "tactics.yaml", content)


CHANGES = [change_charter, change_taxonomy, change_rubric, change_card, change_tactic]


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_changes_with_any_content(folder, change):
    """One word in any of the five parts makes it another charter."""
    before = load_charter(folder).hash

    change(folder)

    assert load_charter(folder).hash != before


# What is refused, and in which words.


def test_a_missing_folder_is_named(tmp_path):
    """The whole path is given: the operator may have mistyped it."""
    absent = tmp_path / "nowhere"

    assert refusal(absent) == f"{absent}: there is no such charter folder: create it or correct the path"


@pytest.mark.parametrize("name", ["charter.yaml", "taxonomy.yaml", "rubric.yaml", "tactics.yaml"])
def test_a_missing_file_is_named(folder, name):
    """Each of the four files is needed."""
    (folder / name).unlink()

    assert refusal(folder) == f"{name}: the file is missing from {folder}: add it"


def test_a_charter_without_cards_is_refused(folder):
    """Without cards there is nothing to train or evaluate on."""
    shutil.rmtree(folder / "cards")

    assert refusal(folder) == f"cards: there is no *.yaml file in {folder / 'cards'}: add at least one"


def test_broken_yaml_is_shown_by_its_line(folder):
    """The sentence names the line where the parser stopped."""
    (folder / "rubric.yaml").write_text("criteria:\n  - id: [stance\n", encoding="utf-8")

    said = refusal(folder)

    assert re.fullmatch(r"rubric\.yaml: line 3: .*expected ',' or '\]'.*: correct the YAML there", said)


def test_a_file_in_another_encoding_is_refused(folder):
    """Chinese text saved as GBK is no UTF-8."""
    (folder / "rubric.yaml").write_bytes("name: 宪章".encode("gbk"))

    sentence = refusal(folder)

    assert sentence.startswith("rubric.yaml: the file cannot be read as YAML (")
    assert sentence.endswith("): correct the YAML there")


def test_an_impossible_date_is_refused(folder, cards):
    """YAML reads an unquoted date; the thirteenth month is the author's slip, not a crash."""
    cards.write_text("- id: x\n  date: 2024-13-45\n", encoding="utf-8")

    fault = "the file cannot be read as YAML (month must be in 1..12)"
    assert refusal(folder) == f"cards/{cards.name}: {fault}: correct the YAML there"


def test_an_empty_file_is_refused(folder):
    """An empty charter is no charter."""
    (folder / "charter.yaml").write_text("", encoding="utf-8")

    assert refusal(folder) == "charter.yaml: the file must hold keys and values: see the shipped charter.yaml"


def test_a_card_file_that_is_no_list_is_refused(folder, cards):
    """A single card still needs its dash."""
    write(cards, read(cards)[0])

    fault = "the file must hold a list of cards: start each with '- id:'"
    assert refusal(folder) == f"cards/{cards.name}: {fault}"


@pytest.mark.parametrize("blank", [None, "", "  "], ids=["empty", "quotes", "spaces"])
@pytest.mark.parametrize("language", Language)
def test_a_blank_language_counts_as_missing(folder, cards, language, blank):
    """Half a card is no card, whichever half."""
    content = read(cards)
    content[1]["stance"][language.value] = blank
    write(cards, content)

    place = card_place(cards, 2, content[1]["id"])
    assert refusal(folder) == f"{place}: stance.{language} is missing: add it"


def test_an_absent_language_is_missing(folder, cards):
    """The path goes down to the language."""
    content = read(cards)
    del content[1]["claims"][1]["en"]
    write(cards, content)

    assert refusal(folder) == f"{card_place(cards, 2, content[1]['id'])}: claims.2.en is missing: add it"


def test_a_rubric_level_is_named_by_its_number(folder):
    """Levels keep their own numbers; list entries are counted from one."""
    content = read(folder / "rubric.yaml")
    del content["criteria"][0]["levels"][3]["en"]
    write(folder / "rubric.yaml", content)

    assert refusal(folder) == "rubric.yaml: criteria.1.levels.3.en is missing: add it"


def test_a_tactic_without_one_language_is_refused(folder):
    """Tactics are told by number and id as cards are."""
    content = read(folder / "tactics.yaml")
    del content[0]["attack"]["en"]
    write(folder / "tactics.yaml", content)

    assert refusal(folder) == "tactics.yaml: tactic 1 (direct): attack.en is missing: add it"


def test_a_template_without_its_slot_is_refused(folder):
    """A template that loses the claim would press for nothing."""
    content = read(folder / "tactics.yaml")
    content[0]["attack"]["en"][0] = "Is it true?"
    write(folder / "tactics.yaml", content)

    fault = "tactic 'direct': attack template needs {claim} once: 'Is it true?': correct it"
    assert refusal(folder) == f"tactics.yaml: tactic 1 (direct): {fault}"


def test_an_unknown_key_is_named(folder, cards):
    """A misspelt key would otherwise be lost in silence."""
    content = read(cards)
    content[0]["colour"] = "blue"
    write(cards, content)

    place = card_place(cards, 1, content[0]["id"])
    assert refusal(folder) == f"{place}: 'colour' {UNKNOWN_KEY}"


def test_a_text_cut_at_its_comma_is_refused(folder, cards):
    """In `{zh: …, en: Fair, always}` YAML ends the text at the comma and makes an empty key of the rest."""
    content = read(cards)
    content[0]["stance"] |= yaml.safe_load("{en: Fair, always}")
    write(cards, content)

    place = card_place(cards, 1, content[0]["id"])
    assert refusal(folder) == f"{place}: 'stance.always' {UNKNOWN_KEY}"


def test_a_date_without_quotes_is_explained(folder, cards):
    """YAML turns a bare date into something that is not text."""
    content = read(cards)
    content[0]["facts"][0]["date"] = yaml.safe_load("2024-01-01")
    write(cards, content)

    place = card_place(cards, 1, content[0]["id"])
    assert refusal(folder) == f"{place}: facts.1.date must be text: write it in quotes"


def test_a_wrong_value_is_explained(folder, cards):
    """The allowed values are listed."""
    content = read(cards)
    content[0]["split"] = "validation"
    write(cards, content)

    place = card_place(cards, 1, content[0]["id"])
    fault = "split: Input should be 'train', 'dev' or 'test'"
    assert refusal(folder) == f"{place}: {fault}: correct it"


def test_two_cards_with_one_id_are_refused(folder, cards):
    """Both places are named, across files too."""
    content = read(cards)
    write(cards.with_name("zzz.yaml"), content[:1])

    id = content[0]["id"]
    first, second = card_place(cards, 1, id), f"cards/zzz.yaml: card 1 ({id})"
    assert refusal(folder) == f"{second}: the id is already used by {first}: rename one of them"


def test_two_principles_with_one_id_are_refused(folder):
    """A card could not say which it means."""
    content = read(folder / "charter.yaml")
    content["principles"].append(content["principles"][0])
    write(folder / "charter.yaml", content)

    assert refusal(folder) == "charter.yaml: two entries have the principle id 'dignity': rename one of them"


def test_two_sub_domains_with_one_id_are_refused(folder):
    """Also when they stand in different domains."""
    content = read(folder / "taxonomy.yaml")
    content["domains"][1]["subdomains"].append(content["domains"][0]["subdomains"][0])
    write(folder / "taxonomy.yaml", content)

    fault = "two entries have the sub-domain id 'race.color'"
    assert refusal(folder) == f"taxonomy.yaml: {fault}: rename one of them"


def test_two_criteria_with_one_id_are_refused(folder):
    """A score could not be told apart."""
    content = read(folder / "rubric.yaml")
    content["criteria"].append(content["criteria"][0])
    write(folder / "rubric.yaml", content)

    assert refusal(folder) == "rubric.yaml: two entries have the criterion id 'stance': rename one of them"


def test_two_tactics_with_one_id_are_refused(folder):
    """A held-out tactic must not hide behind a trained one."""
    content = read(folder / "tactics.yaml")
    content.append(content[0])
    write(folder / "tactics.yaml", content)

    assert refusal(folder) == "tactics.yaml: two entries have the tactic id 'direct': rename one of them"


def test_a_card_of_an_unknown_sub_domain_is_refused(folder, cards):
    """Its results would belong to no cell."""
    content = read(cards)
    content[0]["id"] = "race.martian-ranks"
    write(cards, content)

    place = card_place(cards, 1, "race.martian-ranks")
    fault = "id: sub-domain 'race.martian' is not in taxonomy.yaml: add it there or rename the card"
    assert refusal(folder) == f"{place}: {fault}"


def test_a_card_with_an_unknown_principle_is_refused(folder, cards):
    """A card may only call on what the charter holds."""
    content = read(cards)
    content[0]["principles"] = ["dignity", "thrift"]
    write(cards, content)

    place = card_place(cards, 1, content[0]["id"])
    fault = "principles: 'thrift' is not in charter.yaml"
    assert refusal(folder) == f"{place}: {fault}: add it there or name another"


@pytest.mark.parametrize("language", Language)
def test_two_cards_with_one_claim_are_refused(folder, cards, language):
    """An answer to the claim could not be traced to its card; one language is enough to confuse."""
    content = read(cards)
    claim = content[0]["claims"][0][language.value]
    content[1]["claims"][2][language.value] = claim.upper() + " "
    write(cards, content)

    first, second = (card_place(cards, n + 1, content[n]["id"]) for n in (0, 1))
    fault = f"the same claim stands at {first}: claims.1.{language}: reword one of them"
    assert refusal(folder) == f"{second}: claims.3.{language}: {fault}"


def test_words_of_a_judge_that_begin_alike_are_refused(folder):
    """What a judge begins to say must mean one thing."""
    content = read(folder / "rubric.yaml")
    content["judge"]["verdict"]["en"] = "Facts"
    write(folder / "rubric.yaml", content)

    fault = "judge: two names of criteria and verdict begin with 'Facts' in en"
    assert refusal(folder) == f"rubric.yaml: {fault}: change one of them"


def test_a_judge_needs_a_word_for_every_outcome(folder):
    """Without one of them the others would share its probability."""
    content = read(folder / "rubric.yaml")
    del content["judge"]["outcomes"]["refusal"]
    write(folder / "rubric.yaml", content)

    expected = "rubric.yaml: judge: the judge needs the outcomes consistent, violating, refusal, broken: correct it"
    assert refusal(folder) == expected
