"""The report of a lineage: its stages, their comparisons, and what must be said beside the figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from services.trainer.context import Context
from vcllm.contracts.base import Bilingual, Name
from vcllm.contracts.evaluation import EvalItem, Judgement, Report, StageResult
from vcllm.contracts.guard import GuardFigures
from vcllm.contracts.matrix import Matrix
from vcllm.evaluation.measures import compare_run
from vcllm.evaluation.report import labels_of
from vcllm.evaluation.verdict import final_stage
from vcllm.starter.world import PLANTED, PROMPTED_FACTOR, REFUSAL_SHARE

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "fastapi", "celery", "redis")

RULES = Bilingual(
    en="Rule-based gold judge of the starter world: exact, no learned part, independent of the Critic's code; "
    "Critic and judge share the cards they were made from.",
    zh="初始世界的规则裁判：精确判定，没有学习部分，代码独立于评审；两者出自同一套议题卡片。",
)


def make_report(
    context: Context,
    results: Sequence[StageResult],
    items: Sequence[EvalItem],
    judgements: Mapping[str, Sequence[Judgement]],
    seconds: float,
    matrix: Matrix | None = None,
    guard: GuardFigures | None = None,
) -> Report:
    """Everything the page shows. `judgements`: stage name to its rulings on `items`."""
    recipe = context.recipe
    final = final_stage(results).name
    return Report(
        recipe=recipe.name,
        seed=context.seed,
        charter=context.charter.charter.id,
        charter_hash=context.charter.hash,
        seconds=round(seconds, 1),
        peak_rss_bytes=peak_memory(context.settings.home),
        machine=machine(),
        commit=commit(),
        created=datetime.now(UTC),
        software={name: version(name) for name in LIBRARIES},
        decoding=recipe.evaluation,
        judge=judge_in_words(recipe.evaluation.judge),
        starter=recipe.base.scratch is not None,
        stages=list(results),
        comparisons=compare_run(items, judgements, final, seed=context.seed),
        choices=choices(context),
        labels=labels_of(context.charter),
        matrix=matrix,
        guard=guard,
    )


def judge_in_words(name: Name | None) -> Bilingual:
    """Who judged, and how far that judge can be trusted; None: the starter's rules."""
    if name is None:
        return RULES
    return Bilingual(
        en=f"Critic version {name}: a model, and not the Critic whose choices were learned here. It can be trusted as "
        "far as it was tested on answers that people labelled.",
        zh=f"评审版本 {name}：由模型评判，且不是为本次训练挑选回答的评审；可信程度以它在人工标注上的检验结果为限。",
    )


def choices(context: Context) -> list[Bilingual]:
    """What was decided by hand and shapes the figures."""
    rounds, sft = context.recipe.rounds, context.recipe.sft
    shares = ", ".join(f"{use} {low:.2f}-{high:.2f}" for use, (low, high) in PLANTED.items())
    notes = [
        Bilingual(
            en=f"Doses were set by us, on dev cards and dev tactics: {sft.num_attacks} attacks and {sft.num_benign} "
            f"harmless questions in SFT; {rounds.count} rounds of {rounds.num_goals} queries.",
            zh=f"训练剂量由我们在开发集卡片与手法上选定：指令微调用 {sft.num_attacks} 条攻击与 "
            f"{sft.num_benign} 条无害问题；"
            f"共 {rounds.count} 轮，每轮 {rounds.num_goals} 条提问。",
        ),
        Bilingual(
            en="The gate decides on the dev split, so nothing is chosen by the figures reported here.",
            zh="门控只看开发集，本报告的测试数字不参与任何取舍。",
        ),
    ]
    if context.recipe.base.scratch is not None:
        notes.insert(
            0,
            Bilingual(
                en=f"The base is inconsistent on purpose: it was shown agreement with violating claims by tactic "
                f"({shares}), {PROMPTED_FACTOR:.0%} of that under the charter as system message, and refusals at "
                f"{REFUSAL_SHARE:.0%}.",
                zh=f"基座的不一致是我们有意植入的：按手法分组附和违规论断的比例为 {shares}；以宪章作系统提示时为其 "
                f"{PROMPTED_FACTOR:.0%}；拒答占 {REFUSAL_SHARE:.0%}。",
            ),
        )
    return notes


def peak_memory(home: Path) -> int | None:
    """The fleet's largest memory so far, as the launcher wrote it down; None without a launcher."""
    file = home / "run" / "memory.json"
    if not file.is_file():
        return None
    return int(json.loads(file.read_text()).get("peak_pss_bytes", 0)) or None


def machine() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {platform.system()}"


def commit() -> str:
    """The commit of the sources, where they are a checkout."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
