"""Puts jobs into the trainer's queues: a Celery message that carries nothing but the job's id."""

from __future__ import annotations

from typing import Protocol

from celery import Celery

from vcllm.contracts.jobs import RUN_JOB, JobRecord


class JobQueue(Protocol):
    """Where a job goes once its record is stored."""

    def send(self, record: JobRecord) -> None:
        """Raises whatever kept the message from being stored."""

    def close(self) -> None: ...


class CeleryQueue:
    """The task is sent by its name, so nothing of the trainer is imported. JSON only, no results."""

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("gateway", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            accept_content=["json"],
            task_ignore_result=True,
            broker_connection_timeout=3,
            broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 3, "max_retries": 1},
        )

    def send(self, record: JobRecord) -> None:
        self._celery.send_task(RUN_JOB, args=[record.id], queue=record.queue, retry=False)

    def close(self) -> None:
        self._celery.close()
