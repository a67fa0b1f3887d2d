"""TRL's online DPO on the prompts a round would ask, judged by the same Critic: the loop's strongest ready-made peer.

    python -m benchmarks.loop_trl ORDER.json        prompts, model and Critic folders, budget; writes out/, result.json

Every prompt is answered twice by the policy as it stands, the Critic's score says which answer is better, one DPO step
is taken over them. Whatever TRL does not say is its own default. Runs as a process of its own: TRL patches and warns.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from services.critic.classifier import Classifier
from vcllm.contracts.critiques import Critique, CritiqueItem, Outcome
from vcllm.engine.load import Loader


class CriticReward:
    """The Critic's score as reward; counts the pairs that our rules would have approved."""

    __name__ = "critic_score"

    def __init__(self, critic: Classifier, chosen_min: float) -> None:
        self.critic, self.chosen_min = critic, chosen_min
        self.num_answers = self.num_pairs = self.num_approved = 0
        self.seconds = 0.0

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        kind: list[str],
        language: list[str],
        **_: Any,
    ) -> list[float]:
        """prompts: twice each, first all first answers; a score an answer, 0 for one nobody can judge."""
        started = time.monotonic()
        items = [
            CritiqueItem(query=prompt[-1]["content"], response=answer[0]["content"], kind=one, language=in_language)
            for prompt, answer, one, in_language in zip(prompts, completions, kind, language, strict=True)
        ]
        critiques = asyncio.run(self.critic.critique(items))
        half = len(critiques) // 2
        self.num_answers += len(critiques)
        self.num_pairs += half
        self.num_approved += sum(map(self._approved, critiques[:half], critiques[half:]))
        self.seconds += time.monotonic() - started
        return [critique.score or 0.0 for critique in critiques]

    def _approved(self, one: Critique, other: Critique) -> bool:
        """The better one is good enough to stand behind: what our stream would have taken in."""
        best = max((one, other), key=lambda critique: critique.score or 0.0)
        return best.outcome is Outcome.CONSISTENT and best.language_ok and (best.score or 0.0) >= self.chosen_min


class Clock(TrainerCallback):
    """When the first step began: opening models and compiling is nobody's throughput."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.started = time.monotonic()


def main(file: Path) -> int:
    logging.disable_progress_bar()
    order = json.loads(file.read_text())
    torch.set_num_threads(order["threads"])
    torch.manual_seed(order["seed"])
    tokenizer = AutoTokenizer.from_pretrained(order["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32)
    reward = CriticReward(Classifier(Loader("classifier").load(order["critic"])), order["chosen_min"])
    rows = [
        {"prompt": [{"role": "user", "content": one["query"]}], "kind": one["kind"], "language": one["language"]}
        for one in order["prompts"]
    ]
    args = OnlineDPOConfig(
        output_dir=str(file.parent / "trl"),
        per_device_train_batch_size=order["prompts_per_step"],
        max_steps=order["steps"],
        learning_rate=order["learning_rate"],
        lr_scheduler_type="constant",
        beta=order["beta"],
        temperature=order["temperature"],
        max_new_tokens=order["max_tokens"],
        missing_eos_penalty=1.0,
        gradient_checkpointing=False,  # TRL's default spares memory that is not short here, and costs a third
        save_strategy="no",
        report_to=[],
        logging_steps=1000,
        use_cpu=True,
        bf16=order["bf16"],
        seed=order["seed"],
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = OnlineDPOTrainer(
        model=model,
        ref_model=AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    seconds = time.monotonic() - clock.started
    out = file.parent / "out"
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    result = {
        "seconds": seconds,
        "critic_seconds": reward.seconds,
        "answers": reward.num_answers,
        "pairs": reward.num_pairs,
        "approved": reward.num_approved,
        "steps": trainer.state.global_step,
    }
    (file.parent / "result.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
