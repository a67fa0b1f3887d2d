"""A training run as files: what its supervisor and its process leave for each other in the run's folder."""

from __future__ import annotations

ORDER = "order.json"
"""What to train, a `StageOrder`; written by the supervisor."""
DATASET = "dataset.jsonl"
"""The rows, frozen; written by the supervisor."""
STOP = "stop"
"""Its presence asks the run to write a checkpoint and end with `STOPPED`; removed by the supervisor."""
LOG = "log.txt"
CHECKPOINTS = "checkpoints"
OUT = "out"
"""The finished version's files, without its manifest."""
RESULT = "result.json"
"""Written last, by the run: metrics, format, base and probes of what is in `OUT`."""
FAULT = "fault.json"
"""`{"message": sentence}`, written by a run that ends with `FAILED`: what the operator should do."""

HOLDER = "holder.json"
"""`{"token", "job"}`: whose the folder is; written by the supervisor before every start."""

TOKEN_VARIABLE = "VCLLM_RUN_TOKEN"
"""Environment variable by which a run learns the token it was started with; a run without one is by hand."""

FAILED = 2
"""Exit code: the run cannot go on as it is ordered; trying again changes nothing."""
FENCED = 3
"""Exit code: the folder belongs to a newer run by now; nothing was written since."""
STOPPED = 75
"""Exit code: a checkpoint was written because somebody asked; the run can be started again at any time."""
