"""`python -m vcllm.training JOB_FOLDER MODEL_STORE`"""

import sys

from vcllm.training.run import main

sys.exit(main(sys.argv[1:]))
