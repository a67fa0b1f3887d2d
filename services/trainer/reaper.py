"""The reaper: every few seconds, jobs whose worker is gone are queued again.

A process of its own, so that no pipeline can delay it:

python -m services.trainer.reaper
"""

from __future__ import annotations

import logging
import signal
import threading

from redis.exceptions import RedisError

from services.trainer.app import create_celery, sender
from services.trainer.metrics import serve_metrics
from services.trainer.runner import reap
from services.trainer.settings import TrainerSettings
from vcllm.settings import Settings
from vcllm.web.logs import PLAIN, set_up_logs

log = logging.getLogger("services.trainer.reaper")


def main() -> None:
    """Reap until told to end; an outage of Redis is waited out."""
    settings, trainer = Settings(), TrainerSettings()
    set_up_logs("reaper", settings.log_format, logging.INFO, text=PLAIN)
    serve_metrics(settings, trainer)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    send = sender(create_celery(settings, trainer))
    log.info("The reaper looks every %g s.", trainer.reap_every_s)
    while True:
        try:
            for job_id in reap(settings, trainer, send):
                log.info("%s lost its worker and was queued again", job_id)
        except (RedisError, OSError) as error:
            log.warning("Redis does not answer (%s); trying again", error)
        if ended.wait(trainer.reap_every_s):
            return


if __name__ == "__main__":
    main()
