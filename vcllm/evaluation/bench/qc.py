"""Quality checks of VC-Bench: what a program can see of a set's faults. Any fault fails the build.

What no program sees (same meaning, natural language, a fair stance) is for readers; the data sheet says who read.
The limits follow the authoring rules of the data sheet.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from vcllm.charter import LoadedCharter
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Expected, SelfTestFault, SelfTestPair, Unit, UnitKind
from vcllm.contracts.charter import Card, Split
from vcllm.evaluation.bench.load import Bench

COUNTS: dict[UnitKind, int] = {
    UnitKind.DIRECT: 8,
    UnitKind.PREMISE: 6,
    UnitKind.WRAPPER: 6,
    UnitKind.COUNTERFACTUAL: 8,
    UnitKind.MIRROR: 6,
    UnitKind.BENIGN: 8,
    UnitKind.PRESSURE: 4,
}
"""Test units of each sub-domain: 46."""
DEV_COUNTS: dict[UnitKind, int] = {
    UnitKind.DIRECT: 1,
    UnitKind.PREMISE: 1,
    UnitKind.WRAPPER: 1,
    UnitKind.BENIGN: 2,
    UnitKind.PRESSURE: 1,
}
"""Dev units of each sub-domain, and one set of two: mirror in MIRROR_DEV, counterfactual elsewhere."""
MIRROR_DEV = frozenset({"race.history", "soc.ethics", "pol.sovereign", "pol.rights", "pol.govern", "pol.intl"})
NUM_SELFTEST = 5
"""Self-test pairs of each sub-domain, and one fault of each kind among them."""
MAX_SAME_GRAMS = 0.8
"""Jaccard similarity of character 4-grams (3-grams in Chinese) of two prompts of one sub-domain."""
MAX_SHARE_OF_LABEL = 0.5
"""Of one `expected` value among the units of a sub-domain that are not benign."""
LENGTH_RATIO = (0.8, 3.0)
"""Chinese characters to English words."""
MIRROR_LENGTH = 0.15
MIRROR_SLACK = {Language.ZH: 3, Language.EN: 2}
"""Characters (zh) or words (en) by which short mirror prompts may differ in any case."""
SELFTEST_LENGTH = (0.6, 1.67)
"""Length of the good answer to that of the bad one: a judge of length must not pass."""
MAX_SEPARABLE = 0.75
"""Balanced accuracy of telling benign units from the others by surface words, on sub-domains not seen."""
LEAK_WORDS, LEAK_CHARACTERS = 8, 13
CJK = re.compile(r"[\u3400-\u9fff]")
LATIN_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_bench(bench: Bench, charter: LoadedCharter, only: str | None = None) -> list[Fault]:
    """Every fault of the set; with `only`, of one sub-domain, without what needs the whole set."""
    faults: list[Fault] = []
    subdomains = [sub.id for sub in charter.taxonomy.subdomains] if only is None else [only]
    for subdomain in subdomains:
        of_cell = {split: _of(bench.units[split], subdomain) for split in (Split.TEST, Split.DEV)}
        faults += check_cell(subdomain, of_cell[Split.TEST], of_cell[Split.DEV], charter)
        faults += check_selftest(subdomain, [pair for pair in bench.selftest if pair.subdomain == subdomain])
    if only is None:
        faults += _unknown_cells(bench, set(subdomains))
        faults += check_leaks(bench.units[Split.TEST], bench.units[Split.DEV], charter.cards)
        faults += check_separability([*bench.units[Split.TEST], *bench.units[Split.DEV]])
    return faults


def figures(bench: Bench) -> dict[str, float | int | str]:
    """What the checks measure, for whoever wants to see how near the limits the set is."""
    units = [*bench.units[Split.TEST], *bench.units[Split.DEV]]
    counts = {f"{split}_units": len(bench.units[split]) for split in (Split.TEST, Split.DEV)}
    told = {f"benign_told_from_adversarial_{one}": separability(units, one) for one in Language}
    benign = {name: share for name, share in told.items() if share is not None}
    return {"version": bench.release.version, **counts, "selftest_pairs": len(bench.selftest), **benign}


def check_cell(subdomain: str, test: Sequence[Unit], dev: Sequence[Unit], charter: LoadedCharter) -> Iterator[Fault]:
    """One sub-domain: counts, sets, languages, lengths, labels, repeats and topics."""
    yield from _counts(f"test/{subdomain}", test, COUNTS)
    extra = UnitKind.MIRROR if subdomain in MIRROR_DEV else UnitKind.COUNTERFACTUAL
    yield from _counts(f"dev/{subdomain}", dev, DEV_COUNTS | {extra: 2})
    for split, units in (("test", test), ("dev", dev)):
        for unit in units:
            yield from _unit_faults(f"{split}/{unit.id}", unit, units, charter)
        yield from _set_faults(split, units)
    yield from _labels(f"test/{subdomain}", test)
    yield from _repeats([*test, *dev])
    yield from _topics(subdomain, test, dev, charter)


def _counts(where: str, units: Sequence[Unit], wanted: dict[UnitKind, int]) -> Iterator[Fault]:
    found = Counter(unit.kind for unit in units)
    for kind in UnitKind:
        if found[kind] != wanted.get(kind, 0):
            yield Fault(where, f"{found[kind]} units of kind '{kind}' instead of {wanted.get(kind, 0)}")


# One unit.


def _unit_faults(where: str, unit: Unit, units: Sequence[Unit], charter: LoadedCharter) -> Iterator[Fault]:
    known = {principle.id for principle in charter.charter.principles}
    for principle in unit.principles:
        if principle not in known:
            yield Fault(where, f"the charter has no principle '{principle}'")
    for language in Language:
        half = unit[language]
        for name, text in (("prompt", " ".join(half.prompt)), ("stance", half.stance)):
            yield from _language(where, language, name, text)
        for text in (*half.must, *half.must_not, *half.nice):
            yield from _language(where, language, "rubric", text)
        if unit.group and not any(unit.group[language] in turn for turn in half.prompt):
            yield Fault(where, f"the group does not stand in the {language} prompt as it is written in `group`")
    ratio = len(CJK.findall(" ".join(unit.zh.prompt))) / max(1, num_words(" ".join(unit.en.prompt)))
    if not LENGTH_RATIO[0] <= ratio <= LENGTH_RATIO[1]:
        yield Fault(where, f"{ratio:.2f} Chinese characters for an English word: one language says more than the other")
    for field in ("must", "must_not", "nice"):
        points = [len(getattr(unit[language], field)) for language in Language]
        if len(set(points)) > 1:
            yield Fault(where, f"`{field}` has {points[0]} points in Chinese and {points[1]} in English: say the same")
    if unit.lookalike_of is not None:
        yield from _lookalike(where, unit, units)


def _language(where: str, language: Language, name: str, text: str) -> Iterator[Fault]:
    num_cjk, num_latin = len(CJK.findall(text)), len(LATIN_WORD.findall(text))
    if language is Language.EN and num_cjk:
        yield Fault(where, f"the English {name} holds Chinese characters: {text[:40]!r}")
    if language is Language.ZH and num_cjk <= 2 * num_latin:
        yield Fault(where, f"the Chinese {name} is hardly Chinese: {text[:40]!r}")


def _lookalike(where: str, unit: Unit, units: Sequence[Unit]) -> Iterator[Fault]:
    """A harmless question must share a word with a question that is not."""
    other = next((one for one in units if one.id == unit.lookalike_of), None)
    if other is None or other.kind is UnitKind.BENIGN:
        yield Fault(where, f"lookalike_of: '{unit.lookalike_of}' is no adversarial unit of this file")
        return
    for language in Language:
        shared = content_words(unit[language].prompt, language) & content_words(other[language].prompt, language)
        if not shared:
            yield Fault(where, f"shares no word with {other.id} in {language}: it is no look-alike")


# Sets.


def _set_faults(split: str, units: Sequence[Unit]) -> Iterator[Fault]:
    sets: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if unit.set:
            sets[unit.cluster].append(unit)
    for name, members in sets.items():
        where = f"{split}/{name}"
        if len(members) != 2 or len({unit.kind for unit in members}) != 1:
            yield Fault(where, f"a set is two units of one kind, not {', '.join(unit.id for unit in members)}")
        elif members[0].kind is UnitKind.MIRROR:
            yield from _mirror_faults(where, *members)
        else:
            yield from _swap_faults(where, *members)


def _swap_faults(where: str, first: Unit, second: Unit) -> Iterator[Fault]:
    if {first.group_role, second.group_role} not in ({"advantaged", "disadvantaged"}, {"peer"}):
        yield Fault(where, "group_role: one advantaged and one disadvantaged group, or two peers")
    for language in Language:
        bare = [_without_group(unit, language) for unit in (first, second)]
        if bare[0] != bare[1]:
            yield Fault(where, f"the {language} prompts differ in more than the group")
        if first[language].must_not != second[language].must_not and first.expected is not second.expected:
            yield Fault(where, "what is expected depends on the group")


def _without_group(unit: Unit, language: Language) -> list[str]:
    """Prompts with the group blanked, whatever its case at the start of a sentence."""
    assert unit.group is not None, "counterfactual units have a group"
    return [re.sub(re.escape(unit.group[language]), "@", turn, flags=re.IGNORECASE) for turn in unit[language].prompt]


def _mirror_faults(where: str, first: Unit, second: Unit) -> Iterator[Fault]:
    if {first.mirror_side, second.mirror_side} != {"a", "b"}:
        yield Fault(where, "mirror_side: one side is a, the other b")
    if first.expected is not second.expected or first.stance_type is not second.stance_type:
        yield Fault(where, "`expected` and `stance_type` must be the same for both sides")
    for language in Language:
        a, b = (text_length(unit[language].prompt[0], language) for unit in (first, second))
        if abs(a - b) > max(MIRROR_SLACK[language], MIRROR_LENGTH * max(a, b)):
            yield Fault(where, f"the {language} prompts differ in length by more than 15 %: {a} and {b}")


# A sub-domain.


def _labels(where: str, units: Sequence[Unit]) -> Iterator[Fault]:
    pressing = [unit for unit in units if unit.expected is not Expected.COMPLY_FULLY]
    for expected, count in Counter(unit.expected for unit in pressing).items():
        if count > MAX_SHARE_OF_LABEL * len(pressing):
            yield Fault(where, f"{count} of {len(pressing)} units expect '{expected}': at most half may")


def _repeats(units: Sequence[Unit]) -> Iterator[Fault]:
    for language in Language:
        grams = {unit.id: _grams(" ".join(unit[language].prompt), language) for unit in units}
        for a, b in combinations(units, 2):
            if a.cluster == b.cluster:
                continue
            same = len(grams[a.id] & grams[b.id]) / max(1, len(grams[a.id] | grams[b.id]))
            if same >= MAX_SAME_GRAMS:
                yield Fault(f"{a.id} and {b.id}", f"the {language} prompts are nearly the same ({same:.2f})")


def _grams(text: str, language: Language) -> set[str]:
    plain = re.sub(r"[\W_]+", "", text.casefold())
    size = 3 if language is Language.ZH else 4
    return {plain[at : at + size] for at in range(max(1, len(plain) - size + 1))}


def _topics(subdomain: str, test: Sequence[Unit], dev: Sequence[Unit], charter: LoadedCharter) -> Iterator[Fault]:
    of_test, of_dev = ({unit.topic for unit in units} for units in (test, dev))
    of_cards = {card.id.removeprefix(f"{subdomain}-") for card in charter.cards}
    for topic in sorted((of_test & of_dev) | ((of_test | of_dev) & of_cards)):
        yield Fault(subdomain, f"the topic '{topic}' stands in more than one of test, dev and cards")


# The self-test.


def check_selftest(subdomain: str, pairs: Sequence[SelfTestPair]) -> Iterator[Fault]:
    where = f"selftest/{subdomain}"
    if len(pairs) < NUM_SELFTEST:
        yield Fault(where, f"{len(pairs)} pairs instead of {NUM_SELFTEST}")
    for fault in SelfTestFault:
        if fault not in {pair.fault for pair in pairs}:
            yield Fault(where, f"no bad answer with the fault '{fault}'")
    for pair in pairs:
        for language in Language:
            half = pair[language]
            for name, text in (("prompt", half.prompt), ("good answer", half.good), ("bad answer", half.bad)):
                yield from _language(pair.id, language, name, text)
            ratio = text_length(half.good, language) / max(1, text_length(half.bad, language))
            if not SELFTEST_LENGTH[0] <= ratio <= SELFTEST_LENGTH[1]:
                yield Fault(pair.id, f"the {language} good answer is {ratio:.2f} times as long as the bad one")


# The whole set.


def _unknown_cells(bench: Bench, known: set[str]) -> Iterator[Fault]:
    for split, units in bench.units.items():
        for subdomain in sorted({unit.subdomain for unit in units} - known):
            yield Fault(f"{split}/{subdomain}", "the taxonomy has no such sub-domain")


def check_leaks(test: Sequence[Unit], dev: Sequence[Unit], cards: Iterable[Card] = ()) -> Iterator[Fault]:
    """No run of words of a test prompt may stand in a dev prompt, nor in what cards give to training."""
    for language in Language:
        runs = {run: unit.id for unit in test for run in _runs(" ".join(unit[language].prompt), language)}
        others = [(f"dev/{unit.id}", " ".join(unit[language].prompt)) for unit in dev]
        others += [(f"card {card.id}", text) for card in cards for text in _said_by(card, language)]
        for where, text in others:
            if shared := next((run for run in _runs(text, language) if run in runs), None):
                yield Fault(where, f"shares '{shared}' with test unit {runs[shared]}")


def _said_by(card: Card, language: Language) -> Iterator[str]:
    yield from (one[language] for one in (*card.claims, *card.premises, card.explanation))
    yield from (item.question[language] for item in card.benign)


def _runs(text: str, language: Language) -> Iterator[str]:
    text = text.casefold()
    if language is Language.ZH:
        plain = "".join(CJK.findall(text))
        yield from (plain[at : at + LEAK_CHARACTERS] for at in range(len(plain) - LEAK_CHARACTERS + 1))
    else:
        words = LATIN_WORD.findall(text)
        yield from (" ".join(words[at : at + LEAK_WORDS]) for at in range(len(words) - LEAK_WORDS + 1))


def check_separability(units: Sequence[Unit]) -> Iterator[Fault]:
    for language in Language:
        accuracy = separability(units, language)
        if accuracy is not None and accuracy > MAX_SEPARABLE:
            yield Fault(
                f"{language} prompts",
                f"benign units are told from the others by surface words in {accuracy:.0%} of cases: at most "
                f"{MAX_SEPARABLE:.0%}; give them more words in common",
            )


def separability(units: Sequence[Unit], language: Language) -> float | None:
    """Balanced accuracy of a linear classifier on the words of a prompt, on the sub-domains it was not fitted to.

    None where there are no two sub-domains with harmless and other prompts: nothing could be fitted to the others.
    Support vectors on TF-IDF; naive Bayes, which misses even a word that marks every benign prompt, will not do.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    single = [unit for unit in units if len(unit[language].prompt) == 1]
    texts = [unit[language].prompt[0] for unit in single]
    labels = [unit.kind is UnitKind.BENIGN for unit in single]
    cells = [unit.subdomain for unit in single]
    if any(
        len({cell for cell, found in zip(cells, labels, strict=True) if found is label}) < 2 for label in (True, False)
    ):
        return None
    analyzer, ngrams = ("char", (1, 3)) if language is Language.ZH else ("word", (1, 2))
    words = TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, min_df=2)
    reader = make_pipeline(words, LinearSVC(class_weight="balanced", C=0.3))
    guessed = cross_val_predict(reader, texts, labels, groups=cells, cv=LeaveOneGroupOut())
    return float(balanced_accuracy_score(labels, guessed))


# Text.


def num_words(text: str) -> int:
    return len(LATIN_WORD.findall(text)) + len(re.findall(r"\b\d+\b", text))


def text_length(text: str, language: Language) -> int:
    """Characters in Chinese, words in English."""
    return len(CJK.findall(text)) if language is Language.ZH else num_words(text)


def content_words(turns: Iterable[str], language: Language) -> set[str]:
    """English words of four letters and more; in Chinese, which writes no spaces, runs of two characters."""
    text = " ".join(turns).casefold()
    if language is Language.EN:
        return {word for word in LATIN_WORD.findall(text) if len(word) >= 4} - COMMON
    return {run[at : at + 2] for run in re.findall(r"[\u3400-\u9fff]+", text) for at in range(len(run) - 1)} - COMMON


COMMON = frozenset(
    (  # noqa: SIM905
        "about that this with what when where which would could should have from they them their there than then your "
        "some more most many much just like into does been being because really please make write give tell people "
        "我们 你们 他们 什么 怎么 为什 是不 不是 可以 应该 因为 所以 这个 那个 一个 有人 没有 请你 帮我 写一 一段"
    ).split()
)


def _of(units: Sequence[Unit], subdomain: str) -> list[Unit]:
    return [unit for unit in units if unit.subdomain == subdomain]
