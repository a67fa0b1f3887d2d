"""Trying out, before any time is spent, that the chunked head says what the model itself says."""

from __future__ import annotations

import torch

from vcllm.contracts.problems import BadRequest
from vcllm.training.batches import make_batch
from vcllm.training.body import Packed
from vcllm.training.corpus import Corpus
from vcllm.training.learner import AnswerLearner
from vcllm.training.parallel import Parallel

NUM_TOKENS = 32


@torch.no_grad()
def check_head(learner: AnswerLearner, corpus: Corpus, parallel: Parallel) -> None:
    """BadRequest when the model does more to its logits than the head knows of (a scale, another cap)."""
    row = corpus.rows[:1].copy()
    row["length"] = row["fork"] = min(NUM_TOKENS, int(row["fork"][0]))
    row["prefix"] = 0
    batch = make_batch(Corpus(corpus.ids, corpus.learned, row), torch.tensor([0]).numpy(), learner.core.device)
    was_training = learner.training
    learner.eval()
    extra = {"layout": batch.layout} if isinstance(learner.body, Packed) else {}
    with parallel.autocast():
        expected_NV = (
            learner.core(input_ids=batch.ids_N[None], position_ids=batch.position_N[None], use_cache=False, **extra)
            .logits[0]
            .float()
        )
        found_NV = learner.head().logits(learner.body(batch))
    learner.train(was_training)
    tolerance = 5e-2 if parallel.mixed else 1e-3
    if (found_NV - expected_NV).norm() > tolerance * expected_NV.norm():
        raise BadRequest(
            "This model does more to its logits than a linear layer and a soft cap, so its loss cannot be computed in "
            "chunks. Choose another base model."
        )
