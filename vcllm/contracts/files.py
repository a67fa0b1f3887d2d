"""Uploaded files: what is kept of each, what was found in it, and the OpenAI shapes it is shown in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from vcllm.contracts.base import Contract
from vcllm.contracts.problems import BadRequest

FILE_ID_PATTERN = r"^file-[0-9a-f]{24}$"
FileId = Annotated[str, StringConstraints(pattern=FILE_ID_PATTERN)]

MAX_FAULTS = 100
"""Faults that are told one by one; the rest is a number."""

Use = Literal["sft", "preference"]
"""The training stage that rows are held to: instruction data, or preferences."""


class RowFault(Contract):
    """One thing to correct in a file."""

    line: int | None
    """From 1; None: the file as a whole."""
    pointer: str
    """JSON pointer into the row (RFC 6901); empty for the row as a whole."""
    code: str
    """`invalid_json`, `missing_field`, `invalid_value`."""
    message: str


class FileCheck(Contract):
    """What was found when every line of a file was read for one use."""

    use: Use
    num_rows: int = Field(ge=0)
    num_usable: int = Field(ge=0)
    """Without faults, not empty, and not seen before in the file."""
    num_empty: int = Field(ge=0)
    num_duplicates: int = Field(ge=0)
    num_tokens: int = Field(ge=0)
    """Of the usable rows; an estimate, right within a third or so."""
    ignored: list[str] = Field(default_factory=list)
    """Keys of rows that have no meaning here."""
    num_faults: int = Field(default=0, ge=0)
    faults: list[RowFault] = Field(default_factory=list)
    """The first `MAX_FAULTS`, in the order of the file."""

    @property
    def is_usable(self) -> bool:
        return self.num_faults == 0 and self.num_usable > 0

    def sentence(self, name: str) -> str:
        """What to say of a file that cannot be used."""
        if not self.num_faults:
            left_out = f"{self.num_empty:,} empty, {self.num_duplicates:,} repeated" if self.num_rows else "it is empty"
            return f"{name} has no row to train on ({left_out}). Upload a file that has."
        told = "; ".join(_told(fault) for fault in self.faults[:3])
        more = f"; and {self.num_faults - 3:,} more" if self.num_faults > 3 else ""
        faults = "1 fault" if self.num_faults == 1 else f"{self.num_faults:,} faults"
        return f"{name} has {faults}: {told}{more}. Correct them and upload it again."


class FileRecord(Contract):
    """What is kept of a file beside its content."""

    version: Literal[1] = 1
    id: FileId
    filename: str = Field(max_length=255)
    """As its sender calls it; for people only, never part of a path."""
    num_bytes: int = Field(ge=0)
    sha256: str
    created: float
    """Unix seconds."""
    owner: str
    """Id of the key that uploaded it."""


class FileObject(Contract):
    """A file as the OpenAI API shows it; what begins with `vc_` is ours."""

    id: FileId
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None = None
    expires_at: int | None = None
    vc_sha256: str
    vc_owner: str
    vc_check: FileCheck | None = None
    """For the use that its first sound row suggests; a job checks for its own."""


class FileList(Contract):
    """`GET /v1/files`."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileDeleted(Contract):
    """`DELETE /v1/files/{id}`."""

    id: FileId
    object: Literal["file"] = "file"
    deleted: bool = True


class InvalidRows(BadRequest):
    """A file that cannot be trained on; the error body lists what to correct, line by line."""

    code = "invalid_training_file"

    def __init__(self, message: str, param: str, faults: Sequence[RowFault], num_faults: int) -> None:
        super().__init__(message, param=param)
        self.faults, self.num_faults = faults, num_faults

    def body(self) -> dict[str, Any]:
        body = super().body()
        body["error"]["faults"] = [fault.model_dump() for fault in self.faults]
        body["error"]["num_faults"] = self.num_faults
        return body


def _told(fault: RowFault) -> str:
    where = "the file" if fault.line is None else f"line {fault.line}"
    return f"{where} {fault.pointer}: {fault.message}" if fault.pointer else f"{where}: {fault.message}"
