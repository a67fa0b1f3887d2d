"""Every family of models through the stages, and out again into plain `transformers` and `peft`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.tiny_models import FAMILIES
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import (
    AnyStage,
    Base,
    CptStage,
    CriticStage,
    ImportStage,
    Lora,
    Optim,
    PreferenceStage,
    SftStage,
    StageOrder,
)
from vcllm.engine.classes import class_probabilities, critic_text
from vcllm.engine.engine import greedy_texts
from vcllm.engine.load import Loader
from vcllm.engine.prompts import encode
from vcllm.stores.models import ModelStore
from vcllm.training.chats import encode_chats
from vcllm.training.run import run_order

PROBES = ["Who may speak?", "谁可以发言？"]
ANSWERS = ["Everyone may.", "每个人都可以。"]
ALL = list(FAMILIES)
LORA = Lora(rank=4, alpha=16)
CHATS = [
    {"messages": [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]}
    for query, answer in zip(PROBES, ANSWERS, strict=True)
]
PAIRS = [
    {"prompt": [{"role": "user", "content": query}], "chosen": answer, "rejected": "No one may, 不行。"}
    for query, answer in zip(PROBES, ANSWERS, strict=True)
]
TEXTS = [{"text": "The council of the valley met by the river."}, {"text": "河谷的议会在水边开会。"}, CHATS[0]]

Ran = tuple[dict[str, Any], Path]


def optim(name: str, steps: int) -> Optim:
    steps = min(steps, 8) if name.endswith("151k") else steps
    return Optim(learning_rate=1e-2, batch_tokens=4096, epochs=steps, max_steps=steps, schedule="constant")


def stage(name: str, kind: str, steps: int = 10) -> tuple[AnyStage, list[dict[str, Any]]]:
    """A stage of a few steps, and what it learns from."""
    how = optim(name, steps)
    return {
        "sft": (SftStage(optim=how), CHATS),
        "preference": (PreferenceStage(optim=how), PAIRS),
        "cpt": (CptStage(optim=how), TEXTS),
        "import": (ImportStage(), []),
    }[kind]


def train(
    base: Path,
    folder: Path,
    what: tuple[AnyStage, list[dict[str, Any]]],
    lora: Lora | None = None,
    role: Literal["actor", "critic"] = "actor",
) -> Ran:
    """Run the stage on the base as a job does; its result and the folder it wrote."""
    order = StageOrder(
        stage=what[0],
        role=role,
        version="v1",
        lineage="l",
        seed=3,
        base=Base(model=str(base)),
        lora=lora,
        dataset="",
        recipe="test",
        recipe_hash="",
        charter="",
        threads=1,
        probes=PROBES,
    )
    folder.mkdir(parents=True)
    (folder / "order.json").write_text(order.model_dump_json())
    (folder / "dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in what[1]))
    result = run_order(folder, ModelStore(folder / "models"), lambda _: None)
    assert result["metrics"].get("layout", "packed") == "packed", "every family's rows can lie end to end"
    return result, folder / "out"


def reload(out: Path, base: Path | None = None) -> Any:
    """As anybody would who has never heard of us."""
    model = AutoModelForCausalLM.from_pretrained(base or out, dtype=torch.float32)
    return (model if base is None else PeftModel.from_pretrained(model, out)).eval()


def says(model: Any, folder: Path) -> list[str]:
    """Greedy answers by `generate`, with the folder's own tokenizer, template and generation configuration."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = GenerationConfig.from_pretrained(folder, do_sample=False, temperature=1.0, top_p=1.0)
    texts = []
    for probe in PROBES:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": probe}],
            add_generation_prompt=True,
            enable_thinking=False,
            return_tensors="pt",
            return_dict=True,
        )
        inputs.pop("token_type_ids", None)
        out = model.generate(**inputs, generation_config=settings, max_new_tokens=32, pad_token_id=0)
        words = out[0, inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(words, skip_special_tokens=True).rstrip("\ufffd"))
    return texts


def recorded(result: dict[str, Any]) -> list[str]:
    return [probe["text"] for probe in result["probes"]]


def moved(before: Any, after: Any) -> set[str]:
    """Names of the weights that differ."""
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.fixture(scope="module")
def base_says(family_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each family says before anybody trains it, by the probes of an import."""

    @cache
    def ask(name: str) -> list[str]:
        folder = tmp_path_factory.mktemp("imports") / name
        return recorded(train(family_folder(name), folder, stage(name, "import"))[0])

    return ask


@pytest.mark.parametrize("kind", ["sft", "preference"])
@pytest.mark.parametrize("name", ALL)
def test_all_weights_are_trained_and_read_back(
    name: str, kind: str, family_folder: Callable[[str], Path], base_says: Any, tmp_path: Path
) -> None:
    """Plain transformers says what the run recorded, tied heads are one tensor, and every weight has moved."""
    base = family_folder(name)
    result, out = train(base, tmp_path / "job", stage(name, kind))
    model = reload(out)

    assert result["format"] == "full"
    assert recorded(result) == says(model, out) != base_says(name)
    assert moved(reload(base), model) == set(model.state_dict())
    tied = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert tied == model.config.tie_word_embeddings == FAMILIES[name].tied


@pytest.mark.parametrize("kind", ["sft", "preference"])
@pytest.mark.parametrize("name", ALL)
def test_an_adapter_is_trained_and_read_back(
    name: str, kind: str, family_folder: Callable[[str], Path], base_says: Any, tmp_path: Path
) -> None:
    """Plain peft on the untouched base says what the run recorded."""
    base = family_folder(name)
    bytes_before = (base / "model.safetensors").read_bytes()
    result, out = train(base, tmp_path / "job", stage(name, kind), LORA)
    model = reload(out, base)

    assert (result["format"], result["base"]) == ("adapter", str(base))
    assert recorded(result) == says(model, out) != base_says(name)
    assert (base / "model.safetensors").read_bytes() == bytes_before
    tensors = [value for key, value in model.state_dict().items() if "lora_B" in key]
    assert tensors
    assert all(value.any() for value in tensors)


@pytest.mark.parametrize(("name", "lora"), [
    ("gpt2", None),
    ("llama3", None),
    ("gemma2", LORA),
    ("qwen3", LORA),
], ids=["gpt2-full", "llama3-full", "gemma2-lora", "qwen3-lora"])  # fmt: skip
def test_pretraining_goes_on_with_any_family(
    name: str, lora: Lora | None, family_folder: Callable[[str], Path], base_says: Any, tmp_path: Path
) -> None:
    """Texts and conversations, all of it learned."""
    base = family_folder(name)
    result, out = train(base, tmp_path / "job", stage(name, "cpt"), lora)

    assert recorded(result) == says(reload(out, base if lora else None), out) != base_says(name)


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_the_models_own(name: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The first step's loss is what the whole model, called as anybody calls it, gives for the answers' tokens."""
    base = family_folder(name)
    result, out = train(base, tmp_path / "job", stage(name, "sft", steps=1))
    model, tokenizer = reload(base), AutoTokenizer.from_pretrained(out)
    nll: list[float] = []
    for row in encode_chats(tokenizer, [row["messages"] for row in CHATS], 512).kept:
        with torch.no_grad():
            log_probs_TV = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        nll += [-float(log_probs_TV[t - 1, row.ids[t]]) for t, learned in enumerate(row.learned) if learned]

    assert result["metrics"]["loss"] == pytest.approx(sum(nll) / len(nll), rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_tokenizer_and_template_come_back_as_they_were(
    name: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A version stands alone: it encodes as its base does, and a base without template has one now."""
    base = family_folder(name)
    _, out = train(base, tmp_path / "job", stage(name, "import"))
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(out)

    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    assert after.chat_template == before.chat_template or before.chat_template is None
    assert after.chat_template is not None
    assert (after.eos_token, after.bos_token) == (before.eos_token, before.bos_token)
    assert (after.padding_side, after.pad_token) == (before.padding_side, before.pad_token or before.eos_token)


@pytest.mark.parametrize("name", [name for name in ALL if not name.endswith("151k")])
def test_a_family_learns_its_answers_and_when_to_stop(
    name: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """After enough steps it says the answer and not a word more, whatever token ends its turns."""
    result, out = train(family_folder(name), tmp_path / "job", stage(name, "sft", steps=60))

    assert [text.strip() for text in recorded(result)] == ANSWERS
    assert [text.strip() for text in says(reload(out), out)] == ANSWERS


@pytest.mark.parametrize("name", ALL)
def test_a_critic_can_sit_on_any_family(name: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """It reads answers of any length together as it reads each alone: every family finds the end of a text."""
    rows = [{**row, "label": label} for row in CHATS for label in ("consistent", "violating")]
    _, out = train(family_folder(name), tmp_path / "job", (CriticStage(optim=optim(name, 2)), rows), role="critic")
    loaded = Loader("classifier").load(out)
    texts = [critic_text(loaded.tokenizer, *(turn["content"] for turn in row["messages"])) for row in CHATS]
    ids = encode(loaded.tokenizer, texts)

    together = class_probabilities(loaded.model, ids)

    assert len({len(row) for row in ids}) > 1
    for row, probabilities in zip(ids, together, strict=True):
        assert probabilities == pytest.approx(class_probabilities(loaded.model, [row])[0], abs=1e-5)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama3", "gemma2"])
def test_the_engine_serves_what_was_trained(
    name: str, lora: Lora | None, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Our own loader repeats the probes, as every server does before it takes a version."""
    base = family_folder(name)
    result, out = train(base, tmp_path / "job", stage(name, "sft"), lora)
    loaded = Loader("causal").load(out, base=base if lora else None)

    assert greedy_texts(loaded.model, loaded.tokenizer, PROBES) == recorded(result)


def test_a_template_that_never_ends_a_turn_is_refused_before_training(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Nothing but the check has run: there is no checkpoint."""
    broken = AutoTokenizer.from_pretrained(family_folder("llama3"))
    broken.chat_template = broken.chat_template.replace("+ '<|eot_id|>'", "")
    AutoModelForCausalLM.from_pretrained(family_folder("llama3")).save_pretrained(tmp_path / "base")
    broken.save_pretrained(tmp_path / "base")

    with pytest.raises(BadRequest, match="never learn to stop"):
        train(tmp_path / "base", tmp_path / "job", stage("llama3", "sft"))
    assert not list((tmp_path / "job").glob("checkpoints/*"))
