"""`python -m services.attacker`"""

import sys

from services.attacker.app import create_app
from services.attacker.settings import AttackerSettings
from vcllm.serving.run import run_server

if __name__ == "__main__":
    sys.exit(run_server(AttackerSettings, create_app))
