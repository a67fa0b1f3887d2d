"""Log-probabilities under the reference, which is the model as it is when a stage starts; kept on disk.

They are found again by the reference's hash and the hash of a pair's tokens, in the run's own folder by the same run
after a kill, and in one that runs share by a later stage that replays a pair from the same reference. Both are kept
apart because a number may differ in its last bit with the pairs that were computed beside it: what a run began with,
it ends with.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import Module

from vcllm.stores.models import fsync, translate_full_disk
from vcllm.training.batches import Rows, make_batch, share
from vcllm.training.corpus import Corpus
from vcllm.training.learner import AnswerLearner
from vcllm.training.parallel import Parallel

Known = dict[str, tuple[float, float]]
"""By the hash of a pair's tokens: log-probabilities of chosen and rejected."""

TOKENS_AT_ONCE = 16384


def weights_hash(module: Module) -> str:
    """Changes with any weight or buffer, and with nothing else."""
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def reference_logprobs(
    learner: AnswerLearner, corpus: Corpus, own: Path, shared: Path, reference: str, parallel: Parallel
) -> dict[int, tuple[float, float]]:
    """By row that forks: log-probabilities of both answers; those not yet known are computed and kept.

    own, shared: the folders where this run and all runs keep them.
    """
    forked = np.nonzero(corpus.forked)[0]
    if not len(forked):
        return {}
    keys = [key.decode() for key in corpus.rows["key"][forked]]
    own_file, shared_file = (folder / f"{reference}.safetensors" for folder in (own, shared))
    known: Known = parallel.from_main(_read(shared_file) | _read(own_file) if parallel.is_main else None)
    missing = np.array([row for row, key in zip(forked, keys, strict=True) if key not in known], np.int64)
    if len(missing):
        known |= _compute(learner, corpus, missing, parallel)
        if parallel.is_main:
            _write(shared_file, _read(shared_file) | known)
    if parallel.is_main and (len(missing) or not own_file.is_file()):
        _write(own_file, {key: known[key] for key in keys})
    parallel.wait()
    return {int(row): known[key] for row, key in zip(forked, keys, strict=True)}


@torch.no_grad()
def _compute(learner: AnswerLearner, corpus: Corpus, rows: Rows, parallel: Parallel) -> Known:
    """Every process computes its share, and all know all in the end."""
    was_training, home = learner.training, learner.core.device
    learner.to(parallel.device).eval()
    found: Known = {}
    rows = rows[np.argsort(corpus.lengths[rows], kind="stable")]
    for micro in share(rows, corpus.lengths, parallel.world, parallel.rank, TOKENS_AT_ONCE, learner.body.spread):
        if len(micro):
            with parallel.autocast():
                sums_R2 = learner.logprobs(make_batch(corpus, micro, parallel.device)).view(-1, 2).float()
            names = [key.decode() for key in corpus.rows["key"][micro]]
            found |= {name: (one, other) for name, (one, other) in zip(names, sums_R2.tolist(), strict=True)}
    learner.to(home).train(was_training)
    return {name: value for part in parallel.gather_objects(found) for name, value in part.items()}


def _read(file: Path) -> Known:
    """Nothing when the file is not there or not whole: it can always be computed again."""
    try:
        tensors = load_file(file)
        names = [bytes(row.tolist()).decode() for row in tensors["keys"]]
        return {name: (one, other) for name, (one, other) in zip(names, tensors["logprobs"].tolist(), strict=True)}
    except (OSError, ValueError, KeyError, SafetensorError):
        return {}


def _write(file: Path, known: Known) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp-{uuid.uuid4().hex[:12]}")
    keys = torch.tensor([list(name.encode()) for name in known], dtype=torch.uint8)
    try:
        save_file({"keys": keys, "logprobs": torch.tensor(list(known.values()), dtype=torch.float32)}, temporary)
        fsync(temporary)
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise translate_full_disk(error, file) from error
    finally:
        temporary.unlink(missing_ok=True)
