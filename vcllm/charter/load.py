"""Reads a charter folder: charter, taxonomy, rubric, cards and tactics, checked and hashed as one.

Knows the files and how they refer to each other. Does not know what a card is used for, nor whether its
stance is wise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from vcllm.charter.reading import CharterError, mapping, parse, parse_list
from vcllm.contracts.base import Bilingual, Language, digest
from vcllm.contracts.charter import Card, Charter, Rubric, Split, Tactic, TacticUse, Taxonomy
from vcllm.contracts.problems import BadRequest

SHIPPED = Path(__file__).parent / "data" / "pluralist"
"""The charter used where the operator names none."""

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedCharter:
    """One charter folder in memory."""

    charter: Charter
    taxonomy: Taxonomy
    rubric: Rubric
    cards: tuple[Card, ...]
    """By file name, then in the order of the file."""
    tactics: tuple[Tactic, ...]
    hash: str
    """Hex sha256 of the content but for the guard's section; order and names of card files do not matter to it."""

    def card(self, id: str) -> Card:
        return _named({card.id: card for card in self.cards}, id, "card")

    def tactic(self, id: str) -> Tactic:
        return _named({tactic.id: tactic for tactic in self.tactics}, id, "tactic")

    def cards_of(self, *splits: Split) -> tuple[Card, ...]:
        return tuple(card for card in self.cards if card.split in splits)

    def tactics_of(self, *uses: TacticUse) -> tuple[Tactic, ...]:
        return tuple(tactic for tactic in self.tactics if tactic.use in uses)

    def with_first_cards(self, num: int | None) -> LoadedCharter:
        """The same charter with the first `num` cards of each sub-domain only; None: all of them.

        The hash stays: it names the whole charter, of which a recipe may use a part.
        """
        if num is None:
            return self
        seen: Counter[str] = Counter()
        kept = []
        for card in self.cards:
            seen[card.subdomain] += 1
            if seen[card.subdomain] <= num:
                kept.append(card)
        return replace(self, cards=tuple(kept))

    def with_tactics(self, names: Sequence[str] | None) -> LoadedCharter:
        """The same charter with the named tactics only, in the charter's order; None: all of them.

        The hash stays, as with fewer cards. Raises CharterError for names that the charter does not have.
        """
        if names is None:
            return self
        known = [tactic.id for tactic in self.tactics]
        if unknown := [name for name in dict.fromkeys(names) if name not in known]:
            noun = "tactic" if len(unknown) == 1 else "tactics"
            listed = ", ".join(f"'{name}'" for name in unknown)
            raise CharterError(f"the charter has no {noun} {listed}: choose from {', '.join(known)}")
        return replace(self, tactics=tuple(tactic for tactic in self.tactics if tactic.id in names))

    def reason(self, card: Card) -> Bilingual:
        """The leading principle of a card, in one short sentence."""
        return _named({one.id: one for one in self.charter.principles}, card.principles[0], "principle").reason

    def system_prompt(self, language: Language | str) -> str:
        return self.charter.system_prompt[language]


@dataclass(frozen=True)
class Placed:
    """A card and where its author finds it, such as `cards/soc.class.yaml: card 2 (soc.class-x)`."""

    where: str
    card: Card


def load_charter(path: Path | None = None) -> LoadedCharter:
    """Read the charter folder at `path`, or the shipped one for None; raises CharterError."""
    folder = SHIPPED if path is None else Path(path)
    if not folder.is_dir():
        raise CharterError(f"{folder}: there is no such charter folder: create it or correct the path")
    charter = parse(Charter, mapping(folder, "charter.yaml"), "charter.yaml")
    taxonomy = parse(Taxonomy, mapping(folder, "taxonomy.yaml"), "taxonomy.yaml")
    rubric = parse(Rubric, mapping(folder, "rubric.yaml"), "rubric.yaml")
    tactics = tuple(tactic for _, tactic in parse_list(Tactic, folder, "tactics.yaml", "tactic"))
    found = [pair for name in _card_files(folder) for pair in parse_list(Card, folder, name, "card")]
    placed = [Placed(where, card) for where, card in found]

    _check_unique_ids(charter, taxonomy, rubric, tactics)
    _check_judge_words(rubric)
    _check_card_ids(placed)
    _check_references(placed, charter, taxonomy)
    _check_claims(placed)
    cards = tuple(p.card for p in placed)
    content_hash = _content_hash(charter, taxonomy, rubric, cards, tactics)
    return LoadedCharter(charter, taxonomy, rubric, cards, tactics, content_hash)


def charter_folder(name: str, folder: Path | None) -> Path | None:
    """Where a charter that is known by its name lies, beside the shipped one in `folder`; None: the shipped one."""
    if folder is not None and (folder / name).is_dir():
        return folder / name
    if name == SHIPPED.name:
        return None
    # Where that is, is not said: who asks over HTTP need not know how the server is laid out.
    where = "the folder that VCLLM_CHARTERS names"
    raise BadRequest(f"There is no charter '{name}' in {where}. Put it there, or name '{SHIPPED.name}'.")


def _card_files(folder: Path) -> list[str]:
    names = sorted(f"cards/{file.name}" for file in (folder / "cards").glob("*.yaml"))
    if not names:
        raise CharterError(f"cards: there is no *.yaml file in {folder / 'cards'}: add at least one")
    return names


# Checking: what the parts say about one another.


def _check_unique_ids(charter: Charter, taxonomy: Taxonomy, rubric: Rubric, tactics: tuple[Tactic, ...]) -> None:
    _refuse_repeats("charter.yaml", "principle", (principle.id for principle in charter.principles))
    _refuse_repeats("taxonomy.yaml", "domain", (domain.id for domain in taxonomy.domains))
    _refuse_repeats("taxonomy.yaml", "sub-domain", (sub.id for sub in taxonomy.subdomains))
    _refuse_repeats("rubric.yaml", "criterion", (criterion.id for criterion in rubric.criteria))
    _refuse_repeats("tactics.yaml", "tactic", (tactic.id for tactic in tactics))


def _refuse_repeats(name: str, noun: str, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            raise CharterError(f"{name}: two entries have the {noun} id '{id}': rename one of them")
        seen.add(id)


def _check_judge_words(rubric: Rubric) -> None:
    """A judge says one line; whichever way it begins, only one thing may be meant."""
    if rubric.judge is None:
        return
    for language in Language:
        names = [criterion.name[language] for criterion in rubric.criteria]
        words = [each.word[language] for each in rubric.judge.outcomes.values()]
        _refuse_alike([*names, rubric.judge.verdict[language]], "names of criteria and verdict", language)
        _refuse_alike(words, "words for outcomes", language)


def _refuse_alike(words: list[str], noun: str, language: Language) -> None:
    for word in words:
        if sum(other.startswith(word) for other in words) > 1:
            fault = f"judge: two {noun} begin with '{word}' in {language}"
            raise CharterError(f"rubric.yaml: {fault}: change one of them")


def _check_card_ids(placed: list[Placed]) -> None:
    first: dict[str, str] = {}
    for p in placed:
        if p.card.id in first:
            raise CharterError(f"{p.where}: the id is already used by {first[p.card.id]}: rename one of them")
        first[p.card.id] = p.where


def _check_references(placed: list[Placed], charter: Charter, taxonomy: Taxonomy) -> None:
    subdomains = {sub.id for sub in taxonomy.subdomains}
    principles = {principle.id for principle in charter.principles}
    for p in placed:
        if p.card.subdomain not in subdomains:
            fault = f"id: sub-domain '{p.card.subdomain}' is not in taxonomy.yaml"
            raise CharterError(f"{p.where}: {fault}: add it there or rename the card")
        for unknown in [principle for principle in p.card.principles if principle not in principles]:
            fault = f"principles: '{unknown}' is not in charter.yaml"
            raise CharterError(f"{p.where}: {fault}: add it there or name another")


def _check_claims(placed: list[Placed]) -> None:
    """A claim belongs to one card, so that an answer can be traced back to what it is about."""
    owner: dict[tuple[Language, str], str] = {}
    for p in placed:
        for number, claim in enumerate(p.card.claims, start=1):
            for language in Language:
                where = f"{p.where}: claims.{number}.{language}"
                key = (language, " ".join(claim[language].casefold().split()))
                if key in owner:
                    raise CharterError(f"{where}: the same claim stands at {owner[key]}: reword one of them")
                owner[key] = where


def _content_hash(
    charter: Charter, taxonomy: Taxonomy, rubric: Rubric, cards: tuple[Card, ...], tactics: tuple[Tactic, ...]
) -> str:
    def by_id(items: Iterable[Card | Tactic]) -> list[dict[str, Any]]:
        return [item.model_dump(mode="json") for item in sorted(items, key=lambda item: item.id)]

    return digest(
        {
            "charter": charter.model_dump(mode="json", exclude={"guard"}),
            "taxonomy": taxonomy.model_dump(mode="json"),
            "rubric": rubric.model_dump(mode="json"),
            "cards": by_id(cards),
            "tactics": by_id(tactics),
        }
    )


def _named(items: dict[str, T], id: str, noun: str) -> T:
    if id not in items:
        raise CharterError(f"the charter has no {noun} '{id}': name one of its {len(items)} {noun}s")
    return items[id]
