"""One message, one job, and the end: what a Kubernetes Job runs where the number of workers follows the queue.

    python -m services.trainer.once training

A worker that waits for more would have to be stopped by whoever counts the waiting, who does not see what it is doing.
A message is acknowledged when it arrives, as by the Celery workers, and the job's record tells how the job ended.
"""

from __future__ import annotations

import argparse
import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

from celery import Celery

from services.trainer.app import create_celery, sender
from services.trainer.draining import Drain
from services.trainer.runner import Runner
from services.trainer.settings import TrainerSettings
from vcllm.contracts.jobs import RUN_JOB, Queue
from vcllm.settings import Settings
from vcllm.web.logs import PLAIN, set_up_logs
from vcllm.web.tracing import open_recorder

log = logging.getLogger("services.trainer.once")

WAIT_S = 30.0
"""One Job too many may have been started for the messages there are; it does not wait for long."""
LOOK_EVERY_S = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the queue holds next. SIGTERM brings the job to a checkpoint and gives it back."""
    parser = argparse.ArgumentParser(prog="python -m services.trainer.once", description="Run one job of a queue.")
    parser.add_argument("queue", choices=get_args(Queue))
    parser.add_argument("--wait-s", type=float, default=WAIT_S, help="leave when nothing has come for so long")
    told = parser.parse_args(arguments)
    settings, trainer, drain = Settings(), TrainerSettings(), Drain()
    set_up_logs("trainer", settings.log_format, logging.INFO, text=PLAIN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: drain.begin())
    app = create_celery(settings, trainer, drain)
    job_id = take(app, told.queue, told.wait_s, drain)
    if job_id is None:
        log.info("Nothing waits in the queue '%s'.", told.queue)
        return
    log.info("Running %s.", job_id)
    Runner(settings, trainer, sender(app), drain, open_recorder("trainer")).run(job_id)


def take(app: Celery, queue: str, wait_s: float, draining: Callable[[], bool]) -> str | None:
    """The next job's id, off the queue; None when nothing came in `wait_s`, or this process is to end.

    It looks instead of blocking: what a blocked client is handed while it leaves would be lost.
    """
    deadline = time.monotonic() + wait_s
    with app.connection_for_read() as connection:
        waiting = app.amqp.queues[queue](connection.default_channel)
        while not draining():
            message = waiting.get(accept=["json"])
            if message is not None:
                message.ack()
                if (job_id := _job_of(message)) is not None:
                    return job_id
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(LOOK_EVERY_S)
    return None


def _job_of(message: Any) -> str | None:
    """By Celery's protocol 2: the task's name is a header, the body holds arguments, keywords and extras."""
    if message.headers.get("task") != RUN_JOB:
        log.warning("A message for the task %r was dropped.", message.headers.get("task"))
        return None
    (job_id,), _, _ = message.payload
    return str(job_id)


if __name__ == "__main__":
    main()
