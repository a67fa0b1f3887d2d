"""The stages: what each one learns from its rows. A stage gets a model and rows, and leaves the model trained."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vcllm.contracts.recipes import AnyStage, AttackerStage, ImportStage, Optim, PreferenceStage
from vcllm.training import encode
from vcllm.training.body import choose_body
from vcllm.training.chats import show_mask
from vcllm.training.compiled import compiled_layers
from vcllm.training.corpus import Corpus, Counts, write_corpus
from vcllm.training.learner import AnswerLearner, AnswerLoss
from vcllm.training.loop import Run, optimise, totals_of
from vcllm.training.models import Opened
from vcllm.training.references import reference_logprobs, weights_hash
from vcllm.training.verify import check_head

Rows = Iterable[dict[str, Any]]
ENCODED, EXAMPLE, REFERENCES = "encoded", "example.txt", "references"


def train_on_documents(opened: Opened, rows: Rows, optim: Optim, run: Run) -> None:
    """Next-token loss on everything: pre-training and continued pre-training."""
    _train_on_answers(opened, encoded(encode.documents, opened, rows, optim, run), optim, run, AnswerLoss())


def train_on_chats(opened: Opened, rows: Rows, optim: Optim, run: Run) -> None:
    """Loss on what the assistant says, weighted by row: instruction fine-tuning."""
    _train_on_answers(opened, encoded(encode.answers, opened, rows, optim, run), optim, run, AnswerLoss())


def train_attacker(opened: Opened, rows: Rows, stage: AttackerStage, run: Run, references: Path) -> None:
    """Wins weighted by novelty; where the same goal also failed, DPO of the win over the failure."""
    corpus = encoded(encode.answers, opened, rows, stage.optim, run)
    loss = AnswerLoss(beta=stage.beta, pair_weight=stage.sft_weight)
    _train_on_answers(opened, corpus, stage.optim, run, loss, references)


def train_preference(opened: Opened, rows: Rows, stage: PreferenceStage, run: Run, references: Path) -> None:
    """DPO or IPO on pairs, plus supervised terms on `chosen`, on answers approved alone, and on anchor rows.

    The reference is the model as it is when the stage starts.
    """
    corpus = encoded(encode.answers, opened, rows, stage.optim, run)
    loss = AnswerLoss(beta=stage.beta, kind=stage.loss, pair_weight=stage.sft_weight, other_weight=stage.anchor_weight)
    _train_on_answers(opened, corpus, stage.optim, run, loss, references)


def encoded(encoder: encode.Encoder, opened: Opened, rows: Rows, optim: Optim, run: Run) -> Corpus:
    """The rows as tokens, written once; and the first of them in words, for a person to look at."""
    counts = Counts()
    if run.parallel.is_main:
        made = encoder(opened.tokenizer, rows, optim.max_length, counts)
        write_corpus(run.folder / ENCODED, made, counts, run.checkpoints.confirm)
    run.parallel.wait()
    corpus = Corpus.open(run.folder / ENCODED)
    run.notes["rows"] = vars(corpus.counts)
    run.metrics |= {"rows": corpus.counts.rows, "cut": corpus.counts.cut, "dropped": corpus.counts.dropped}
    if run.parallel.is_main:
        (run.folder / EXAMPLE).write_text(first_example(opened.tokenizer, corpus), encoding="utf-8")
    return corpus


def show_first(stage: AnyStage, opened: Opened, rows: Rows) -> str:
    """The first row as the stage would learn it."""
    encoder = {"pretrain": encode.documents, "cpt": encode.documents, "critic": encode.labelled}.get(
        stage.stage, encode.answers
    )
    if isinstance(stage, ImportStage):
        return "Nothing is trained in this stage."
    first = list(islice(rows, encode.AT_ONCE))
    with TemporaryDirectory() as folder:
        made = encoder(opened.tokenizer, first, stage.optim.max_length, counts := Counts())
        return first_example(opened.tokenizer, write_corpus(Path(folder) / ENCODED, made, counts))


def first_example(tokenizer: Any, corpus: Corpus) -> str:
    """The first row as text, what is learned in ⟦ ⟧; a pair as its chosen and its rejected rendering."""
    row = corpus.rows[0]
    start, prefix, fork, length = (int(row[name]) for name in ("start", "prefix", "fork", "length"))
    ids, learned = (
        corpus.ids[start : start + length].tolist(),
        corpus.learned[start : start + length].astype(bool).tolist(),
    )
    shown = show_mask(tokenizer, ids[:fork], learned[:fork]) + "\n"
    if fork < length:
        other = show_mask(tokenizer, ids[:prefix] + ids[fork:], learned[:prefix] + learned[fork:])
        shown = f"chosen:\n{shown}\nrejected:\n{other}\n"
    return shown


def _train_on_answers(
    opened: Opened, corpus: Corpus, optim: Optim, run: Run, loss: AnswerLoss, references: Path | None = None
) -> None:
    """The shared course of all stages but the Critic's."""
    body = choose_body(opened.model, corpus)
    run.metrics["layout"] = body.name
    learner = AnswerLearner(opened.model, body, loss)
    check_head(learner, corpus, run.parallel)
    num_pairs = int(corpus.forked.sum())
    if num_pairs:
        assert references is not None, "rows that fork come to stages that have a reference"
        started = time.monotonic()
        run.metrics["reference"] = run.notes["reference"] = reference = weights_hash(opened.model)
        own = run.folder / REFERENCES
        loss.reference.update(reference_logprobs(learner, corpus, own, references, reference, run.parallel))
        run.metrics["reference_seconds"] = round(time.monotonic() - started, 4)
    with compiled_layers(learner.core, wanted=optim.compile):
        optimise(learner, corpus, optim, run, lambda rows: totals_of(corpus, rows))
    if references is not None:
        run.metrics |= {"pairs": num_pairs, "singles": len(corpus) - num_pairs}
