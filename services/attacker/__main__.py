"""`python -m services.attacker`"""

import sys

from services.attacker.app import create_app
from services.attacker.settings import AttackerSettings
from vcllm.serving.run import run_server
from vcllm.settings import Settings


def main() -> int:
    server, shared = AttackerSettings(), Settings()
    return run_server(lambda: create_app(server, shared), server, shared)


if __name__ == "__main__":
    sys.exit(main())
