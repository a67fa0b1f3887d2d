"""`python -m services.critic`"""

import sys

from services.critic.app import create_app
from services.critic.settings import CriticSettings
from vcllm.serving.run import run_server
from vcllm.settings import Settings


def main() -> int:
    server, shared = CriticSettings(), Settings()
    return run_server(lambda: create_app(server, shared), server, shared)


if __name__ == "__main__":
    sys.exit(main())
