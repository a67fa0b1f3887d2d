"""The Celery app: one task that carries a job id and nothing else.

    celery -A services.trainer.app worker -Q rollouts,training

A message is only a pointer. It is acknowledged when it arrives: whether its job is run, by whom and how often is
decided by the job's record and lease, and the reaper sends it again when a worker is lost. A worker that is told to
end (SIGTERM, also the first Ctrl-C) gives its jobs back, at a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from services.trainer.draining import Drain
from services.trainer.metrics import serve_metrics
from services.trainer.process import die_with_parent
from services.trainer.runner import Runner
from services.trainer.settings import TrainerSettings
from vcllm.contracts.jobs import RUN_JOB
from vcllm.settings import Settings
from vcllm.web.logs import set_up_logs
from vcllm.web.tracing import open_recorder

VISIBILITY_S = 12 * 3600
"""Longer than any message waits unacknowledged, so Redis never hands one out twice by the clock."""


def create_celery(settings: Settings, trainer: TrainerSettings, draining: Callable[[], bool] = lambda: False) -> Celery:
    """An app bound to the settings' Redis. draining: whether this worker is about to end."""
    app = Celery("vcllm-trainer", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_default_queue="rollouts",
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_S,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        visibility_timeout=VISIBILITY_S,
    )

    send = sender(app)
    # Opened by the first job in the pool process that runs it: its thread would not outlive a fork.
    recorder = cache(partial(open_recorder, "trainer"))

    @app.task(name=RUN_JOB, shared=False)
    def run(job_id: str) -> None:
        Runner(settings, trainer, send, draining, recorder()).run(job_id)

    return app


def sender(app: Celery) -> Callable[[str, str], None]:
    """Puts a job id on a queue, by the task's name."""

    def send(job_id: str, queue: str) -> None:
        app.send_task(RUN_JOB, args=[job_id], queue=queue)

    return send


@setup_logging.connect
def _set_up_logs(loglevel: int, logfile: str | None, format: str, **_: object) -> None:
    """Celery sets up no logs where it finds that somebody else does. Text lines look as its own do."""
    stream = None if logfile is None else open(logfile, "a", encoding="utf-8")  # noqa: SIM115
    set_up_logs("trainer", Settings().log_format, loglevel, text=format, stream=stream)


@worker_ready.connect
def _tell_metrics(**_: object) -> None:
    """In the main process, once its pool is there."""
    serve_metrics(Settings(), TrainerSettings())


@worker_process_init.connect
def _follow_parent(**_: object) -> None:
    """A pool process without its worker would go on unseen; its lease would never lapse."""
    die_with_parent()


drain = Drain()
app = create_celery(Settings(), TrainerSettings(), drain)


@worker_shutting_down.connect
def _give_jobs_back(**_: object) -> None:
    drain.begin()
