"""Shape annotations of the method are checked in every test; tests leave the cores to each other."""

import os
import signal

from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("train.r2o", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Tests press Ctrl-C on their children, which inherit what a shell that started us in the background had ignored.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
