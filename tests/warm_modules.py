"""What `tests.warm` imports and compiles before it forks."""

from detectors import kernels
from streams.events import warm_up
from streams.worker import app as app  # for the processes that are forked

kernels.warm_up()
warm_up("auto")
