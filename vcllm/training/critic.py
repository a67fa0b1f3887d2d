"""The Critic's stage: a class per outcome and a score per criterion, calibrated on rows kept apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vcllm.contracts.critiques import SCORED
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import CriticStage
from vcllm.training import encode
from vcllm.training.batches import Rows as RowNumbers
from vcllm.training.batches import make_batch
from vcllm.training.body import choose_body
from vcllm.training.compiled import compiled_layers
from vcllm.training.corpus import Corpus
from vcllm.training.learner import ClassLearner, Totals
from vcllm.training.loop import Run, optimise
from vcllm.training.models import Opened
from vcllm.training.stages import Rows, encoded

CALIBRATION_SHARE = 0.05
"""Of the Critic's rows; never trained on, they set its temperature and its reported accuracy."""
FEWEST_TO_CALIBRATE = 40
"""Rows of a language; with fewer it takes the temperature of all."""


def train_critic(opened: Opened, rows: Rows, stage: CriticStage, run: Run) -> None:
    """A class per outcome over (query, answer) and a score per criterion; temperatures fitted on rows kept apart."""
    # 1  rows kept apart are the first ones: the dataset comes shuffled
    config = opened.model.config
    encoder = partial(encode.labelled, criteria=config.critic_criteria)
    whole = encoded(encoder, opened, encode.check_labels(rows), stage.optim, run)
    if len(whole) < 2:
        raise BadRequest("A critic needs at least two rows: some are kept apart to calibrate it. Bring more rows.")
    num_kept = max(1, round(CALIBRATION_SHARE * len(whole)))
    kept, corpus = np.arange(num_kept), Corpus(whole.ids, whole.learned, whole.rows[num_kept:], whole.counts)
    # 2  classes weigh the same, however many rows each has
    balance_C = class_balance(corpus.rows["label"])
    body = choose_body(opened.model, whole)
    run.metrics["layout"] = body.name
    learner = ClassLearner(opened.model, body, balance_C.to(run.parallel.device), stage.score_weight)

    def totals(numbers: RowNumbers) -> Totals:
        table = corpus.rows[numbers]
        num_scores_R = (~np.isnan(table["scores"])).sum(-1)
        return Totals(
            weight=float((balance_C[table["label"].astype(np.int64)].numpy() * table["weight"]).sum()),
            scores=max(float((num_scores_R * table["weight"]).sum()), 1e-6),
        )

    # 3  train
    with compiled_layers(learner.core, wanted=stage.optim.compile):
        optimise(learner, corpus, stage.optim, run, totals)
    # 4  calibrate
    learner.eval()
    with torch.no_grad(), run.parallel.autocast():
        parts = [
            learner.logits(make_batch(whole, part, learner.core.device))
            for part in np.array_split(kept, -(-num_kept // 64))
        ]
    logits_BC, logits_BK = (torch.cat(part).float().cpu() for part in zip(*parts, strict=True))
    labels_B = torch.from_numpy(whole.rows["label"][:num_kept].astype(np.int64))
    calibrate(config, logits_BC, labels_B, whole.rows["language"][:num_kept], run)
    if config.critic_criteria:
        errors = score_errors(logits_BK, torch.from_numpy(whole.scores[:num_kept]), config.critic_criteria)
        run.metrics["held_out_score_errors"] = errors


def class_balance(labels: np.ndarray[Any, Any]) -> Tensor:
    """Weights (C) by which every class that occurs weighs the same in the sum over all rows."""
    counts = torch.bincount(torch.from_numpy(labels.astype(np.int64)), minlength=len(SCORED)).clamp(min=1)
    return (counts.sum() / (len(SCORED) * counts)).float()


def calibrate(config: Any, logits_BC: Tensor, labels_B: Tensor, language_B: np.ndarray[Any, Any], run: Run) -> None:
    """Write a temperature for all rows, and for each language with enough of them, into the model's configuration."""
    config.critic_temperature = fit_temperature(logits_BC, labels_B)
    by_language = {}
    for number, name in enumerate(("zh", "en")):
        chosen = torch.from_numpy(language_B == number)
        if int(chosen.sum()) >= FEWEST_TO_CALIBRATE:
            by_language[name] = fit_temperature(logits_BC[chosen], labels_B[chosen])
    config.critic_temperatures = by_language
    right = (logits_BC.argmax(-1) == labels_B).float().mean()
    run.metrics |= {
        "held_out_accuracy": round(float(right), 4),
        "temperature": config.critic_temperature,
        "temperatures": by_language,
    }


def score_errors(logits_BK: Tensor, target_BK: Tensor, criteria: Sequence[str]) -> dict[str, float]:
    """Mean absolute error by criterion; one that no row has a score for is left out."""
    error_BK = (logits_BK.sigmoid() - target_BK).abs()
    means_K = error_BK.nanmean(0).tolist()
    return {name: round(mean, 4) for name, mean in zip(criteria, means_K, strict=True) if not math.isnan(mean)}


def fit_temperature(logits_BC: Tensor, labels_B: Tensor) -> float:
    """The temperature of least cross-entropy (Guo et al. 2017), over a grid from 0.5 to 5."""
    grid = [round(0.5 * 1.05**step, 3) for step in range(48)]
    return min(grid, key=lambda t: float(F.cross_entropy(logits_BC / t, labels_B)))
