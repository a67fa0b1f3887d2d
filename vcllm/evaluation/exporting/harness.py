"""To lm-evaluation-harness: a task for each language and a group over them. It answers; judging stays with us.

The harness has no judge and takes one turn only. Its samples carry each row along, so that `vcllm eval import-lm-eval`
finds them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from vcllm.charter import LoadedCharter
from vcllm.contracts.answers import Decoding
from vcllm.contracts.base import Language
from vcllm.contracts.bench import Row
from vcllm.evaluation.exporting.parts import Part, by_language, json_lines, program, takes_single_turns
from vcllm.evaluation.generate import user_turns
from vcllm.evaluation.suites import Suite

FOLDER, GROUP = "vc_bench", "vc_bench"
METRICS = ("answered", "in_language")
"""What can be seen without a judge; shares from 0 to 1."""
takes = takes_single_turns


class _Function(str):
    """A name in `utils.py`, written as the harness wants it."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def parts(suite: Suite, charter: LoadedCharter, rows: Sequence[Row]) -> list[Part]:
    languages = by_language(rows)
    found = [Part(f"{FOLDER}/rows_{lang}.jsonl", json_lines(map(_doc, some))) for lang, some in languages.items()]
    found += [_yaml(f"vc_bench_{lang}", _task(lang, suite)) for lang in languages]
    found += [_yaml(GROUP, _group(list(languages), suite)), program("lm_eval_utils.py", f"{FOLDER}/utils.py")]
    return found


def _doc(row: Row) -> dict[str, Any]:
    """The row, flat and without what differs in type from row to row; `text` is what is asked."""
    return {
        "id": row.id,
        "pair_id": row.pair_id,
        "cluster_id": row.cluster_id,
        "set_id": row.set_id or "",
        "lang": row.lang.value,
        "domain": row.domain,
        "subdomain": row.subdomain,
        "kind": row.kind,
        "stance_type": row.stance_type or "",
        "prompt": row.prompt,
        "choices": row.choices,
        "text": user_turns(row)[0],
        "origin": row.origin,
        "canary": row.canary,
    }


def _task(language: Language, suite: Suite) -> dict[str, Any]:
    decoding = Decoding()
    return {
        "task": f"vc_bench_{language}",
        "custom_dataset": _Function(f"utils.rows_{language}"),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "",
        "process_results": _Function("utils.seen_without_a_judge"),
        "generation_kwargs": {
            # Empty on purpose: left out, the harness cuts every answer at its first blank line.
            "until": [],
            "do_sample": False,
            "temperature": decoding.temperature,
            "max_gen_toks": decoding.max_tokens,
        },
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS],
        "repeats": 1,
        "metadata": {"version": suite.version or suite.hash[:12]},
    }


def _group(languages: Sequence[Language], suite: Suite) -> dict[str, Any]:
    return {
        "group": GROUP,
        "task": [f"vc_bench_{language}" for language in languages],
        "aggregate_metric_list": [{"metric": name, "aggregation": "mean", "weight_by_size": True} for name in METRICS],
        "metadata": {"version": suite.version or suite.hash[:12]},
    }


def _yaml(name: str, content: dict[str, Any]) -> Part:
    text = yaml.dump(content, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=120)
    return Part(f"{FOLDER}/{name}.yaml", text)
