"""Importers of public sets: files on the user's disk become rows. Nothing of those sets is shipped."""

from vcllm.evaluation.importing.lm_eval import import_lm_eval
from vcllm.evaluation.importing.load import Imported, import_set, training_prompts
from vcllm.evaluation.importing.registry import SETS, SetInfo, set_named

__all__ = ["SETS", "Imported", "SetInfo", "import_lm_eval", "import_set", "set_named", "training_prompts"]
