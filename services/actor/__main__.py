"""`python -m services.actor`"""

import sys

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from vcllm.serving.run import run_server

if __name__ == "__main__":
    sys.exit(run_server(ActorSettings, create_app))
