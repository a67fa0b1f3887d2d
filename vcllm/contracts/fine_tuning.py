"""Fine-tuning on uploaded files: the OpenAI API's messages, and the job that is kept of a request.

Fields that begin with `vc_` are ours; the `openai` SDK passes them on as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from vcllm.contracts.base import Contract
from vcllm.contracts.files import FileId
from vcllm.contracts.openai_fields import UNSUPPORTED
from vcllm.contracts.recipes import Contamination, StageOrder

MethodName = Literal["supervised", "dpo"]
Auto = Literal["auto"]

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
"""The API has no word for a paused job: it is `queued`, and `vc_status` says more."""

Suffix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]

NOTE = (
    "Not promoted: no gate has seen this version. A key with the scope models:promote can chat with it by name, and "
    "can put it into service with PUT /v1/aliases/actor/current."
)


class Hyperparameters(Contract):
    """What a request may say of a supervised training; `auto` is what the model's own recipe says."""

    batch_size: Auto | Annotated[int, Field(ge=1, le=4096)] | None = None
    """Rows of a step, on average: steps are cut by tokens."""
    learning_rate_multiplier: Auto | Annotated[float, Field(ge=1e-6, le=1000, allow_inf_nan=False)] | None = None
    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] | None = None


class DpoHyperparameters(Hyperparameters):
    """The same for preferences."""

    beta: Auto | Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    """How hard the model is held to what it was."""


class Supervised(Contract):
    """`method.supervised`."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Contract):
    """`method.dpo`."""

    hyperparameters: DpoHyperparameters | None = None


class Method(Contract):
    """How to train: a type and, under the type's name, its settings."""

    type: MethodName
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="after")
    def _only_its_own(self) -> Method:
        other = self.dpo if self.type == "supervised" else self.supervised
        if other is not None:
            raise PydanticCustomError("value_error", "Only settings under the method's own name belong to it.")
        return self

    @property
    def asked(self) -> Hyperparameters:
        """As they were sent; for DPO a `DpoHyperparameters`."""
        if self.type == "dpo":
            return (self.dpo.hyperparameters if self.dpo else None) or DpoHyperparameters()
        return (self.supervised.hyperparameters if self.supervised else None) or Hyperparameters()


class FineTuningCreate(Contract):
    """`POST /v1/fine_tuning/jobs`."""

    model: str = Field(min_length=1, max_length=64)
    """A version of the Actor, or `vc-llm`: the one that is promoted when the job is made."""
    training_file: str = Field(max_length=200)
    method: Method | None = None
    """None: supervised."""
    hyperparameters: Hyperparameters | None = None
    """The older place for those of a supervised training."""
    suffix: Suffix | None = None
    """Part of the new version's name, in small letters and cut to what fits."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """None: one is drawn."""
    metadata: Metadata | None = None
    validation_file: str | None = None
    """Not supported: every version is measured by the evaluation and the gate, on items nobody trains on."""
    integrations: list[dict[str, Any]] | None = None
    """Not supported: nothing that a request names is called."""

    @field_validator("validation_file")
    @classmethod
    def _no_validation_file(cls, value: str | None) -> None:
        if value is not None:
            raise PydanticCustomError(
                UNSUPPORTED, "Not supported: versions are measured by the evaluation and the gate. Leave it out."
            )

    @field_validator("integrations")
    @classmethod
    def _no_integrations(cls, value: list[dict[str, Any]] | None) -> None:
        if value:
            raise PydanticCustomError(UNSUPPORTED, "Not supported: nothing outside is called. Leave it out.")

    @field_validator("hyperparameters")
    @classmethod
    def _in_one_place(cls, value: Hyperparameters | None, info: ValidationInfo) -> Hyperparameters | None:
        if value is not None and info.data.get("method") is not None:
            raise PydanticCustomError("value_error", "Give hyperparameters under method only, not beside it as well.")
        return value

    @property
    def how(self) -> Method:
        """The method with its settings, wherever they were sent."""
        return self.method or Method(type="supervised", supervised=Supervised(hyperparameters=self.hyperparameters))


class FineTune(Contract):
    """A fine-tuning job as it is kept: everything is settled but the rows, which the trainer freezes."""

    version: Literal[1] = 1
    file: FileId
    model: str
    """As it was asked for."""
    method: Method
    """As it was asked for, hyperparameters resolved."""
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    owner: str
    """Id of the key that asked."""
    contamination: Contamination = "refuse"
    """What is done with rows that quote the evaluation; by the recipe of the model's lineage."""
    order: StageOrder
    """Its `dataset` is empty until the trainer has taken the file in."""


class FineTuningError(Contract):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class FineTuningJob(Contract):
    """A job as the OpenAI API shows it."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    """The version it starts from."""
    fine_tuned_model: str | None = None
    """The new version, once it is there."""
    status: Status
    error: FineTuningError | None = None
    training_file: str
    validation_file: None = None
    result_files: list[str] = Field(default_factory=list)
    hyperparameters: Hyperparameters
    method: Method
    seed: int
    metadata: dict[str, str] | None = None
    integrations: list[dict[str, Any]] = Field(default_factory=list)
    organization_id: str = "vc-llm"
    trained_tokens: int | None = None
    vc_status: str
    """The job's own state, as `GET /v1/jobs/{id}` has it."""
    vc_progress: dict[str, Any] = Field(default_factory=dict)
    vc_note: str = NOTE


class FineTuningJobList(Contract):
    """`GET /v1/fine_tuning/jobs`, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuningJob]
    has_more: bool = False


class FineTuningEvent(Contract):
    """One thing that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] = Field(default_factory=dict)


class FineTuningEventList(Contract):
    """`GET /v1/fine_tuning/jobs/{id}/events`, newest first."""

    object: Literal["list"] = "list"
    data: list[FineTuningEvent]
    has_more: bool = False
    vc_num_gone: int = 0
    """Of the job's first events, so many are no longer kept."""


class FineTuningCheckpoint(Contract):
    """A version that can be used. Where a run stands in between is in `GET /v1/jobs/{id}/checkpoints`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class FineTuningCheckpointList(Contract):
    """`GET /v1/fine_tuning/jobs/{id}/checkpoints`."""

    object: Literal["list"] = "list"
    data: list[FineTuningCheckpoint]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False
