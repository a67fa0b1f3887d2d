"""The stages: what each one learns from its rows. A stage gets a model and rows, and leaves the model trained.

Shapes: B rows, P pairs of a step.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vcllm.contracts.critiques import SCORED
from vcllm.contracts.recipes import CriticStage, Optim, PreferenceStage
from vcllm.engine.scoring import critic_text
from vcllm.training.batches import Example, collate, encode_all, encode_chats, encode_texts
from vcllm.training.loop import Run, autocast, optimise
from vcllm.training.losses import dpo_loss, sequence_logprobs, token_logprobs, weighted_nll

Rows = list[dict[str, Any]]
CALIBRATION_SHARE = 0.05
"""Of the Critic's rows; never trained on, they set its temperature and its reported accuracy."""


def train_language_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, optim: Optim, run: Run
) -> None:
    """Next-token loss on everything: pre-training and continued pre-training."""
    _train_examples(model, tokenizer, encode_all(tokenizer, rows, optim.max_length), optim, run)


def train_on_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, optim: Optim, run: Run
) -> None:
    """Loss on assistant tokens, weighted by row: instruction fine-tuning and the Attacker's updates."""
    _train_examples(model, tokenizer, encode_chats(tokenizer, rows, optim.max_length), optim, run)


def _train_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    optim: Optim,
    run: Run,
) -> None:
    def objective(rows: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        batch = collate([examples[row] for row in rows], tokenizer.pad_token_id, model.device)
        nll, weight = weighted_nll(*token_logprobs(model, batch), batch.weights_B)
        return nll / weight.clamp(min=1e-6), {}

    optimise(model, [len(example.ids) for example in examples], objective, optim, run)


def train_critic(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, stage: CriticStage, run: Run
) -> None:
    """A class per outcome over (query, answer), then a temperature fitted on rows kept apart."""
    texts = [critic_text(tokenizer, *(turn["content"] for turn in row["messages"])) for row in rows]
    examples = encode_texts(tokenizer, texts, stage.optim.max_length)
    label_of = {outcome.value: index for index, outcome in enumerate(SCORED)}
    labels = torch.tensor([label_of[row["label"]] for row in rows], device=model.device)
    num_kept = max(1, round(CALIBRATION_SHARE * len(rows)))
    counts = torch.bincount(labels[num_kept:], minlength=len(SCORED)).clamp(min=1)
    balance = (counts.sum() / (len(SCORED) * counts)).float()

    def logits(indices: Sequence[int]) -> Tensor:
        batch = collate([examples[row] for row in indices], tokenizer.pad_token_id, model.device)
        return model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT, use_cache=False).logits.float()

    def objective(indices: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        chosen = [row + num_kept for row in indices]
        return F.cross_entropy(logits(chosen), labels[chosen], weight=balance), {}

    optimise(model, [len(example.ids) for example in examples[num_kept:]], objective, stage.optim, run)
    model.eval()
    with torch.no_grad():
        kept = [logits(range(start, min(start + 64, num_kept))) for start in range(0, num_kept, 64)]
    model.config.critic_temperature = fit_temperature(torch.cat(kept), labels[:num_kept])
    predicted = torch.cat(kept).argmax(-1)
    run.metrics["held_out_accuracy"] = round(float((predicted == labels[:num_kept]).float().mean()), 4)
    run.metrics["temperature"] = model.config.critic_temperature


def fit_temperature(logits_BC: Tensor, labels_B: Tensor) -> float:
    """The temperature of least cross-entropy (Guo et al. 2017), over a grid from 0.5 to 5."""
    grid = [round(0.5 * 1.05**step, 3) for step in range(48)]
    return min(grid, key=lambda t: float(F.cross_entropy(logits_BC / t, labels_B)))


def train_preference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    stage: PreferenceStage,
    run: Run,
    reference_file: Path,
) -> None:
    """DPO on pairs, plus supervised terms on `chosen`, on answers approved alone, and on anchor rows.

    rows: `{"query", "chosen", "rejected" | None}` or `{"messages"}` (anchor). The reference is the model as it is when
    the stage starts; its log-probabilities are kept in `reference_file`, so a resumed run uses the same ones.
    """
    chosen = encode_chats(tokenizer, [_chosen(row) for row in rows], stage.optim.max_length)
    rejected_rows = {
        index: _turns(row["query"], row["rejected"]) for index, row in enumerate(rows) if row.get("rejected")
    }
    rejected = (
        dict(
            zip(
                rejected_rows,
                encode_chats(tokenizer, list(rejected_rows.values()), stage.optim.max_length),
                strict=True,
            )
        )
        if rejected_rows
        else {}
    )
    reference = _reference_gaps(model, tokenizer, chosen, rejected, reference_file)

    def objective(indices: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        pairs = [index for index in indices if index in rejected]
        batch = collate(
            [chosen[i] for i in indices] + [rejected[i] for i in pairs], tokenizer.pad_token_id, model.device
        )
        logprob_N, row_N = token_logprobs(model, batch)
        is_chosen_N = row_N < len(indices)
        weight_B = torch.tensor(
            [stage.sft_weight if index in rejected else stage.anchor_weight for index in indices] + [0.0] * len(pairs),
            device=model.device,
        )
        nll, _ = weighted_nll(logprob_N, row_N, weight_B)
        loss = nll / is_chosen_N.sum().clamp(min=1)
        if not pairs:
            return loss, {}
        sequence_B = sequence_logprobs(logprob_N, row_N, len(indices) + len(pairs))
        position = {index: place for place, index in enumerate(indices)}
        gap_P = sequence_B[[position[index] for index in pairs]] - sequence_B[len(indices) :]
        reference_P = torch.tensor([reference[index] for index in pairs], device=model.device)
        margin = stage.beta * (gap_P - reference_P).detach()
        figures = {"margin": float(margin.mean()), "preferred": float((margin > 0).float().mean())}
        return loss + dpo_loss(gap_P, reference_P, stage.beta) / len(pairs), figures

    lengths = [
        len(chosen[index].ids) + len(rejected[index].ids if index in rejected else []) for index in range(len(rows))
    ]
    optimise(model, lengths, objective, stage.optim, run)
    run.metrics |= {
        "pairs": len(rejected),
        "approved_only": sum("query" in row for row in rows) - len(rejected),
    }


def _reference_gaps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[Example],
    rejected: dict[int, Example],
    file: Path,
) -> dict[int, float]:
    """log p(chosen) - log p(rejected) under the model as it is now, by row."""
    if file.is_file():
        gaps_P = load_file(file)["gaps"]
    else:
        gaps_P = _gaps(model, tokenizer, [(chosen[index], rejected[index]) for index in rejected])
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.tmp-{uuid.uuid4().hex[:12]}")
        save_file({"gaps": gaps_P}, temporary)
        temporary.replace(file)
    return dict(zip(rejected, gaps_P.tolist(), strict=True))


@torch.no_grad()
def _gaps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[Example, Example]]) -> Tensor:
    model.eval()
    gaps = [torch.zeros(0)]
    for start in range(0, len(pairs), 32):
        part = pairs[start : start + 32]
        batch = collate([one for one, _ in part] + [other for _, other in part], tokenizer.pad_token_id, model.device)
        with autocast(batch.ids_BT.device):
            sequence_B = sequence_logprobs(*token_logprobs(model, batch), 2 * len(part))
        gaps.append(sequence_B[: len(part)] - sequence_B[len(part) :])
    return torch.cat(gaps)


def _chosen(row: dict[str, Any]) -> dict[str, Any]:
    return row if "messages" in row else _turns(row["query"], row["chosen"])


def _turns(query: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]}
