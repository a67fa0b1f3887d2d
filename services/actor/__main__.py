"""`python -m services.actor`"""

import sys

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from vcllm.serving.run import run_server
from vcllm.settings import Settings


def main() -> int:
    server, shared = ActorSettings(), Settings()
    return run_server(lambda: create_app(server, shared), server, shared)


if __name__ == "__main__":
    sys.exit(main())
