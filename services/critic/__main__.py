"""`python -m services.critic`"""

import sys

from services.critic.app import create_app
from services.critic.settings import CriticSettings
from vcllm.serving.run import run_server

if __name__ == "__main__":
    sys.exit(run_server(CriticSettings, create_app))
