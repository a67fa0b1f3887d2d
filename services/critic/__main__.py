"""`python -m services.critic`"""

import gc
import sys

gc.disable()  # imports make objects by the million and no garbage; `run_server` turns it on again

from services.critic.app import create_app  # noqa: E402
from services.critic.settings import CriticSettings  # noqa: E402
from vcllm.serving.run import run_server  # noqa: E402

if __name__ == "__main__":
    sys.exit(run_server(CriticSettings, create_app))
