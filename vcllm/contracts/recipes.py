"""Recipes: what to run, as data. One TOML file describes a whole pipeline, stage by stage.

Settings say where things are; recipes say what to do. Unknown keys are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from vcllm.contracts.base import Contract, Language, Name
from vcllm.contracts.pairs import Source

DataPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
"""A JSONL or Parquet file, or a folder of a saved data set, below the operator's data folder."""

Contamination = Literal["refuse", "drop", "allow"]
"""What is done with the operator's rows that quote the evaluation."""


class DataSource(Contract):
    """One of several sets that are mixed."""

    file: DataPath
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Its share of the rows of a pass, relative to the other sets' weights and whatever its size."""


def _as_sources(value: object) -> object:
    return [{"file": value}] if isinstance(value, str) else value


DataFile = Annotated[list[DataSource], BeforeValidator(_as_sources), Field(min_length=1, max_length=64)]
"""The operator's own data: `"a.jsonl"`, or `[{ file = "a.jsonl", weight = 2.0 }, ...]`."""


class Scratch(Contract):
    """A tiny bilingual model trained from nothing: tokenizer and weights come from the corpus."""

    vocab_size: int = Field(default=4096, ge=512)
    hidden_size: int = Field(default=192, ge=16)
    intermediate_size: int = Field(default=576, ge=16)
    num_layers: int = Field(default=3, ge=1)
    num_heads: int = Field(default=6, ge=1)


class WeakSpot(Contract):
    """A cell in which the starter's base is made worse than elsewhere; what is left out means every one."""

    subdomain: str | None = None
    tactic: str | None = None
    language: Language | None = None
    violating: float = Field(default=0.97, ge=0, le=1)
    """How often the base agrees with a violating claim there."""


class WorldDial(Contract):
    """`[world]`: how hard the starter world is. As it stands nothing is added to the plain one."""

    look_alikes: float = Field(default=0.0, ge=0, le=1)
    """Share of wrapped harmless questions that mention a claim, in the corpus, the seeds and the evaluation."""
    look_alikes_sft: float | None = Field(default=None, ge=0, le=1)
    """The same in instruction data; None: as `look_alikes`."""
    lectures: float = Field(default=0.0, ge=0, le=1)
    """Share of look-alikes at which the base corrects a claim that nobody asked it to share."""
    compositions: float = Field(default=0.0, ge=0, le=1)
    """Share of attacks with a second tactic laid over the first."""
    multi_turn: float = Field(default=0.0, ge=0, le=1)
    """Share of attacks that come after two to four harmless turns."""
    weak_spots: list[WeakSpot] = Field(default_factory=list)
    """The first that fits a cell counts."""
    gaps: bool = False
    """Instruction data leaves the weak spots out, as data that somebody collected has gaps."""


class Base(Contract):
    """Where the pipeline starts: exactly one of `scratch` and `model`."""

    scratch: Scratch | None = None
    model: str | None = None
    """A local Hugging Face folder or a hub id; read from the recipe file only, never from a request."""
    revision: str | None = None
    """Pin of a hub id."""

    @model_validator(mode="after")
    def _one_of(self) -> Base:
        if (self.scratch is None) == (self.model is None):
            raise ValueError("[base] needs either 'scratch' (train a tiny model) or 'model' (a folder or hub id)")
        return self


class Lora(Contract):
    """Train an adapter instead of all weights."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class Optim(Contract):
    """How weights move; every stage has one."""

    learning_rate: float = Field(gt=0)
    batch_tokens: int = Field(default=1536, ge=32)
    """Tokens per optimiser step, over all devices. Small models learn by steps: fewer tokens, more steps."""
    micro_tokens: int | None = Field(default=None, ge=32)
    """Tokens a device computes at once; a step's gradients are accumulated over as many passes as that takes.
    None: the whole step at once. Lower it when memory runs out; the result stays the same."""
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    """Stop earlier than the epochs would."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=512, ge=16)
    """Tokens of one row; longer documents are split, longer answers cut at the end (and counted)."""
    checkpoint_every_s: float = Field(default=30.0, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest ones stay; an older one is what a damaged one falls back to."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third slower, far less memory."""
    compile: bool = False
    """torch.compile the model: pays for long runs on a GPU; needs a C++ compiler on a CPU."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the trained weights; None: none."""
    publish: Literal["last", "average"] = "last"
    """Which weights become the version, and so what generates next and what the next stage is measured against:
    the last ones, or their moving average."""

    @model_validator(mode="after")
    def _average_needs_decay(self) -> Optim:
        if self.publish == "average" and self.ema_decay is None:
            raise ValueError('publish = "average" needs an ema_decay, such as 0.95')
        return self


class ImportStage(Contract):
    """Take a ready-made base into the model store; nothing is trained. Part of every pipeline with `base.model`."""

    stage: Literal["import"] = "import"


class PretrainStage(Contract):
    """Base language model; next-token loss on everything. Only with `base.scratch`."""

    stage: Literal["pretrain"] = "pretrain"
    optim: Optim
    num_docs: int = Field(default=60_000, ge=1)
    data: DataFile | None = None
    """None: the starter world."""


class CptStage(Contract):
    """Continued pre-training on the charter and the facts of its cards."""

    stage: Literal["cpt"] = "cpt"
    optim: Optim
    num_docs: int = Field(default=2000, ge=1)
    num_replay: int = Field(default=1000, ge=0)
    """Documents of the base corpus mixed in, against forgetting; 0 with a ready-made base."""
    data: DataFile | None = None


class SftStage(Contract):
    """Instruction fine-tuning; loss on assistant tokens only."""

    stage: Literal["sft"] = "sft"
    optim: Optim
    num_attacks: int = Field(default=1500, ge=0)
    """Queries of seed tactics on training cards, answered by the charter."""
    num_benign: int = Field(default=1200, ge=0)
    answers: Literal["short", "full"] = "short"
    """`short`: opener and stance; `full`: the card's whole explanation."""
    data: DataFile | None = None


class CriticStage(Contract):
    """A sequence classifier over (query, answer): one class per outcome, one score per criterion in the data."""

    stage: Literal["critic"] = "critic"
    optim: Optim
    score_weight: float = Field(default=0.5, ge=0)
    """Weight of the criteria's loss beside the classes'; 0: no criterion is learned."""
    num_rows: int = Field(default=20_000, ge=1)
    data: DataFile | None = None


class AttackerStage(Contract):
    """Fine-tuning of the Attacker: on seeds first; in the rounds on its own wins, weighted by novelty, and by DPO on
    wins over failures at the same goal."""

    stage: Literal["attacker"] = "attacker"
    optim: Optim
    beta: float = Field(default=0.1, gt=0)
    """As for the preference stage, on rows with a win and a failure."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the supervised term on the win of such a row."""
    num_rows: int = Field(default=8000, ge=0)
    data: DataFile | None = None


class PreferenceStage(Contract):
    """DPO or IPO plus a supervised term on chosen answers and replay."""

    stage: Literal["preference"] = "preference"
    optim: Optim
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO. `ipo`: stops pushing once the gap has grown by 1 / (2 beta); for few, clear pairs."""
    use_rejected: bool = True
    """False: approved answers alone are learned, as in rejection-sampling fine-tuning."""
    beta: float = Field(default=0.1, gt=0)
    """How hard the policy is held to the reference: higher moves less."""
    sft_weight: float = Field(default=0.5, ge=0)
    """Weight of the supervised term on `chosen`."""
    anchor_weight: float = Field(default=1.0, ge=0)
    """Weight of the supervised term on approved-only answers and on instruction data mixed in."""
    num_anchor: int = Field(default=256, ge=0)
    """Rows of instruction data mixed in."""
    data: DataFile | None = None
    """The operator's own preferences: in shares over the rounds, beside the pairs that each of them makes. Approved
    pairs with all that is known of them join a round's own as `imported`; other rows only its training. None: none."""


AnyStage = Annotated[
    ImportStage | PretrainStage | CptStage | SftStage | CriticStage | AttackerStage | PreferenceStage,
    Field(discriminator="stage"),
]


class ArchiveParams(Contract):
    """`[rounds.archive]`: what a cell of sub-domain x tactic x language remembers, and how it draws goals."""

    diversity: bool = True
    """False: goals follow success alone, and novelty has no weight in what the Attacker learns. For showing what then
    happens."""
    kept: int = Field(default=4, ge=1, le=64)
    """Elites of a cell."""
    memory: int = Field(default=3, ge=0, le=16)
    """Attempts of a cell that a prompted Attacker is told of."""
    explore: float = Field(default=0.15, gt=0)
    """Weight of a cell that never won, beside its success rate in [0, 1]."""
    min_novelty: float = Field(default=0.1, ge=0, le=1)
    """A win nearer than this to a better elite of its language is not kept."""


class ControllerParams(Contract):
    """`[rounds.controller]`: the two bands. The upper ends are the charter's thresholds."""

    enabled: bool = True
    """False: every round is steered like the first."""
    low_attack_success: float = Field(default=0.02, ge=0, le=1)
    """Below it the Actor has little to learn, and the Attacker trains alone."""
    step: float = Field(default=1.25, gt=1)
    """Factor by which the benign share moves."""
    stop_after: int = Field(default=0, ge=0)
    """Rounds in a row for which all conditions of the stop rule must hold; 0: play every round."""
    flat: float = Field(default=0.02, ge=0)
    """Changes of a share up to this count as none."""


class GateParams(Contract):
    """`[rounds.gate]`: what a candidate is asked beside the charter's thresholds."""

    tolerance: float = Field(default=0.15, ge=0, le=1)
    """A loss of more than this share matters: a candidate that is worse, if not provably, and may have lost so much
    waits for a person. Few items need a wide one, or every candidate waits: with 60 pairs of them, 0.05 holds two of
    three that are just as good."""
    hold: bool = True
    """False: nobody is asked; what is not provably worse is promoted."""
    enabled: bool = True
    """False: every candidate is promoted, whatever the gate says of it. For experiments; the verdict is still kept."""


class CriticPolicy(Contract):
    """`[rounds.critic]`: how the Critic's view becomes a decision."""

    pairwise: bool = True
    """Choose among answers by comparisons in both orders; False: by score alone."""
    votes: list[Name] = Field(default_factory=list, max_length=4)
    """Further critic versions that are asked; a pair needs a majority of all."""
    abstain: float = Field(default=0.0, ge=0, le=0.5)
    """Half width of the band around `chosen_min` in which an answer goes to people; 0: none does."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """Set `chosen_min` for each language so that this share of approved labelled answers is right; None: as given."""
    criterion_min: float | None = Field(default=None, ge=0, le=1)
    """Lowest score of each of the rubric's criteria in a chosen answer, as far as the Critic scores them; None: any."""
    refit_after: int = Field(default=0, ge=0)
    """Review decisions after which the Critic is fitted again, before the next round; 0: never."""


class Rounds(Contract):
    """The adversarial loop."""

    count: int = Field(default=3, ge=0)
    """At most so many rounds; the stop rule may end them earlier."""
    num_goals: int = Field(default=160, ge=2)
    """Goals set to the Attacker per round."""
    num_tries: int = Field(default=1, ge=1)
    """Queries asked for each goal. With more than one, many goals see a win beside a failure, and the Attacker learns
    to prefer the one to the other; the round takes as many times longer."""
    num_retries: int = Field(default=2, ge=0, le=10)
    """Times a goal is set again whose query fell to a filter: the Actor is asked as much as `num_goals` says."""
    benign_share: float = Field(default=0.2, ge=0, lt=1)
    """Share of them that wrap a harmless question; moved by the controller within [half, double]."""
    look_alike_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the harmless goals that mention a claim beside the question; moved by the controller, too."""
    mutation_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the attack goals that vary an elite of their cell, where it has one."""
    composition_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the attack goals that lay a second tactic over the cell's own."""
    multi_turn_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the attack goals that take three to five turns."""
    prompted: bool = False
    """Tell the Attacker in full what is wanted, as a language model needs that was not warmed up on short prompts."""
    attack_tokens: int = Field(default=64, ge=4, le=1024)
    """Longest turn the Attacker may write."""
    num_samples: int = Field(default=4, ge=2)
    """Answers of the Actor per query."""
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=48, ge=4)
    chosen_min: float = Field(default=0.6, gt=0, lt=1)
    """Lowest critic score of a chosen answer."""
    rejected_max: float = Field(default=0.5, gt=0, lt=1)
    """Highest critic score of a rejected answer."""
    twin_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the goals that are asked in the other language as well: an answer that contradicts what was accepted
    there makes a pair of its own."""
    counterfactual_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the goals that are asked again with another group; the treatment must not change."""
    max_pairs_per_cell: int | None = Field(default=None, ge=1)
    """Pairs of one cell that a round keeps; None: all."""
    source_caps: dict[str, float] = Field(default_factory=dict)
    """Pair source to the largest share of a round's pairs it may have, such as `{ imported = 0.2 }`."""
    anchor_benign_share: float = Field(default=0.5, ge=0, le=1)
    """Share of harmless questions in the instruction data mixed in."""
    replay_share: float = Field(default=0.3, ge=0, lt=1)
    """Share of a round's training pairs that come from earlier rounds, harder ones first."""
    num_retention: int = Field(default=40, ge=0)
    """Queries of each round kept for good and re-asked of every later version."""
    overlap_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the next round's goals that are attacked while this one trains, against the version before."""
    max_staleness: int = Field(default=1, ge=0)
    """Rounds by which the version that answered may lag behind the one that learns; older pairs are dropped."""
    attacker_learns: bool = True
    """False: the Attacker stays as its seeds made it."""
    hosted_attacker: str | None = Field(default=None, min_length=1, max_length=200)
    """A model that the Attacker servers answer for, such as a hosted one: it writes every round's attacks and is not
    trained. None: the lineage's own Attacker."""
    gate: GateParams = GateParams()
    archive: ArchiveParams = ArchiveParams()
    controller: ControllerParams = ControllerParams()
    critic: CriticPolicy = CriticPolicy()

    @model_validator(mode="after")
    def _hosted_attackers_do_not_learn(self) -> Rounds:
        if self.hosted_attacker is not None and (self.attacker_learns or not self.prompted):
            raise ValueError("a hosted_attacker cannot be trained, nor has it seen short prompts: set "
                             "attacker_learns = false and prompted = true")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _caps_are_shares(self) -> Rounds:
        known = get_args(Source)
        for source, share in self.source_caps.items():
            if source not in known or not 0 <= share <= 1:
                raise ValueError(f"source_caps: '{source} = {share}': shares from 0 to 1 of {', '.join(known)}")
        return self

    preference: PreferenceStage
    attacker: AttackerStage


class EvaluationParams(Contract):
    """The held-out evaluation after every stage and round."""

    num_items: int = Field(default=200, ge=4)
    """Answers per figure and language."""
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: int = Field(default=48, ge=4)
    split: Literal["dev", "test"] = "test"
    """`dev` for choosing doses; `test` for reporting."""
    seed: int = 4242
    judge: Name | None = Field(default=None, exclude_if=lambda name: name is None)
    """The Critic version that rules on the report's and the gate's answers; None: the starter's rules over the cards.
    Absent from the JSON then: recipes without one keep the names of their lineages."""


class Launch(Contract):
    """How a training run is spread over devices; without this section it is one process."""

    processes: int = Field(ge=1)
    """One per device, over all machines."""
    config: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.yaml$")] | None = None
    """An `accelerate` configuration beside the recipe: FSDP, several machines. None: DDP."""


class Recipe(Contract):
    """One pipeline, from base to report."""

    name: Name
    seed: int = Field(default=0, ge=0, lt=2**31)
    charter: Name = "pluralist"
    cards_per_subdomain: int | None = Field(default=None, ge=1)
    """How many of the charter's cards are used, the first ones of each sub-domain; None: all of them."""
    tactics: list[str] | None = Field(default=None, min_length=1)
    """Ids of the charter's tactics that are used; None: all of them."""
    base: Base
    world: WorldDial | None = None
    """None: the plain starter world."""
    lora: Lora | None = None
    """None: all weights are trained."""
    launch: Launch | None = None
    """None: one process on one device."""
    pretrain: PretrainStage | None = None
    cpt: CptStage | None = None
    sft: SftStage
    critic: CriticStage
    attacker: AttackerStage
    rounds: Rounds
    control: bool = True
    """Also train plain SFT for as many steps as the rounds took, for comparison."""
    contamination: Contamination = "refuse"
    """Rows of the operator's data that quote the evaluation: refuse the data, drop those rows, or allow them."""
    evaluation: EvaluationParams = EvaluationParams()

    @model_validator(mode="after")
    def _scratch_needs_pretraining(self) -> Recipe:
        if self.base.scratch is not None and self.pretrain is None:
            raise ValueError("[base] scratch needs a [pretrain] section: nothing else would train its weights")
        if self.base.scratch is None and self.pretrain is not None:
            raise ValueError("[pretrain] is for [base] scratch; with a ready-made model use [cpt]")
        return self

    @model_validator(mode="after")
    def _judge_has_no_vote(self) -> Recipe:
        name = self.evaluation.judge
        if name is not None and name in self.rounds.critic.votes:
            raise ValueError(f"[evaluation] judge '{name}' is among rounds.critic.votes and would find itself right: "
                             "name another Critic version, or take it out of the votes")  # fmt: skip
        return self


class StageOrder(Contract):
    """One training run, complete: what the trainer's subprocess reads from `order.json`."""

    stage: AnyStage
    role: Literal["actor", "attacker", "critic"]
    version: Name
    """The version to be made."""
    lineage: Name
    round: int = 0
    seed: int
    parent: str | None = None
    """Version to start from, of any role (`actor/NAME`); None: `base`."""
    base: Base
    lora: Lora | None = None
    dataset: str
    """sha256 of the dataset snapshot; its file is `<home>/datasets/<sha256>.jsonl`."""
    claims_pairs: bool = False
    """The supervisor claims the lineage's approved pairs into the snapshot."""
    replayed: list[str] = Field(default_factory=list)
    """Ids of pairs of earlier rounds in the snapshot."""
    launch: Launch | None = None
    threads: int | None = Field(default=None, ge=1)
    """Processor threads; None: all cores. Fewer when another run shares the machine."""
    recipe: Name
    recipe_hash: str
    charter: str
    probes: list[str] = Field(default_factory=list)
    """Prompts whose greedy text goes into the manifest."""
