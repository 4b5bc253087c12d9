"""The tiny models of merge's tests, for saving what is merged into them."""

from tests.merge.conftest import _one_thread as _one_thread
from tests.merge.conftest import tiny_base as tiny_base
