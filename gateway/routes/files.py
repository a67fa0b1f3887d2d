"""Uploaded files, as the OpenAI API has them: training data for fine-tuning jobs, and nothing else.

Everybody who may read jobs sees all files; who may write jobs uploads and deletes. A file that a job still needs stays.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from gateway.auth import JobReader, JobWriter, KeyFirst
from gateway.fine_tuning.uploads import Form, receive
from gateway.state import GatewayState, State
from vcllm.contracts.files import FileCheck, FileDeleted, FileList, FileObject, FileRecord
from vcllm.contracts.problems import BadRequest, Conflict, NotFound, Unavailable
from vcllm.stores.files import FileStore, Incoming
from vcllm.stores.models import NoSpace

log = logging.getLogger(__name__)

UPLOAD_PATH = "/v1/files"
PURPOSE = "fine-tune"

_PARTS = {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "const": PURPOSE}}
_SCHEMA = {"type": "object", "required": [*_PARTS], "properties": _PARTS, "additionalProperties": False}
FORM = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}
CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}

router = APIRouter(prefix="/v1/files", route_class=KeyFirst)
uploads = APIRouter(route_class=KeyFirst)
"""The one route that takes a large body, so that no other is given more room."""


@uploads.post(UPLOAD_PATH, response_model=FileObject, openapi_extra=FORM)
async def create_file(request: Request, key: JobWriter, state: State) -> FileObject:
    """Receive, check every line, and keep; a file with faults is kept with the status `error`, and no job takes it.

    The form's parts: `file` (JSONL) and `purpose`, which must be `fine-tune`.
    """
    state.checker.refuse_full()  # now, not when all of it has been sent
    with _storage_told(state):
        async with _receiving(state.files) as incoming:
            form = await receive(request, incoming, state.limits.max_upload_bytes)
            _refuse_unsupported(form)
            assert form.filename is not None, "a form without a file was refused"
            return await to_thread.run_sync(_kept, state, incoming, form.filename, key.id)


@router.get("")
def list_files(
    key: JobReader,
    state: State,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FileList:
    """Newest first. after: the id of the last file of the page before."""
    records = state.files.all() if purpose in (None, PURPOSE) else []
    records = records if order == "desc" else records[::-1]
    if after is not None:
        place = next((place for place, record in enumerate(records) if record.id == after), None)
        if place is None:
            raise NotFound(f"There is no file '{after[:60]}' to go on after.", param="after")
        records = records[place + 1 :]
    shown = [_shown(record, state.files.first_check(record)) for record in records[:limit]]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return FileList(data=shown, first_id=first, last_id=last, has_more=len(records) > limit)


@router.get("/{file_id}")
def get_file(file_id: str, key: JobReader, state: State) -> FileObject:
    record = state.files.get(file_id)
    return _shown(record, state.files.first_check(record))


@router.get("/{file_id}/content", response_class=FileResponse, responses=CONTENT)
def get_content(file_id: str, key: JobReader, state: State) -> FileResponse:
    """As it was uploaded."""
    record = state.files.get(file_id)
    headers = {"content-disposition": f'attachment; filename="{record.id}.jsonl"'}
    return FileResponse(state.files.content(file_id), media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}")
def delete_file(file_id: str, key: JobWriter, state: State) -> FileDeleted:
    """Gone for good; 409 while a job that has not finished needs it. A finished job's own snapshot stays."""
    with _storage_told(state), state.files.deleting(file_id):
        if users := state.jobs.unfinished_of_file(file_id):
            raise Conflict(f"File '{file_id}' is needed by {', '.join(users[:3])}. Cancel it, or wait.", code="in_use")
    return FileDeleted(id=file_id)


@asynccontextmanager
async def _receiving(files: FileStore) -> AsyncIterator[Incoming]:
    """A new file; making it and clearing it away keep the disk busy, so they are done in threads."""
    stack = ExitStack()
    try:
        yield await to_thread.run_sync(lambda: stack.enter_context(files.receive()))
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(stack.close)


def _kept(state: GatewayState, incoming: Incoming, filename: str, owner: str) -> FileObject:
    """Check it first: nothing is kept of a file that cannot be checked, or for whose check there is no place."""
    with state.checker.turn() as turn:
        check = turn.check(incoming.content(), None)
    return _shown(incoming.keep(filename, owner, check), check)


def _shown(record: FileRecord, check: FileCheck | None) -> FileObject:
    """Without a check it is `uploaded`, and a job will look."""
    usable = check is not None and check.is_usable
    return FileObject(
        id=record.id,
        bytes=record.num_bytes,
        created_at=int(record.created),
        filename=record.filename,
        status="uploaded" if check is None else "processed" if usable else "error",
        status_details=None if check is None or usable else check.sentence(record.filename),
        vc_sha256=record.sha256,
        vc_owner=record.owner,
        vc_check=check,
    )


def _refuse_unsupported(form: Form) -> None:
    purpose = form.fields.pop("purpose", None)
    if form.filename is None:
        raise BadRequest("The form has no part `file`.", param="file")
    if purpose != PURPOSE:
        raise BadRequest(f"purpose must be '{PURPOSE}': files are for fine-tuning only.", param="purpose")
    if form.fields:
        other = next(iter(form.fields))[:60]
        message = f"'{other}' is not supported: files stay until they are deleted. Leave it out."
        raise BadRequest(message, param=other, code="unsupported_parameter")


@contextmanager
def _storage_told(state: GatewayState) -> Iterator[None]:
    """What keeps the disk from being written to, as something an operator can act on."""
    try:
        yield
    except NoSpace as error:
        raise Unavailable("There is no room for files here. Delete some, or have the disk enlarged.") from error
    except OSError as error:
        log.exception("A file could not be kept in %s.", state.files.root)
        reason = error.strerror or type(error).__name__
        raise Unavailable(f"This gateway cannot write where files are kept: {reason}. Its log says where.") from error
