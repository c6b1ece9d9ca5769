"""``python -m diptych`` is ``diptych``: needed by torchrun, which starts modules."""

import sys

from diptych.commands import main

sys.exit(main())
