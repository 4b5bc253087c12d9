"""The tiny models of the merge's tests, for what is saved of them."""

from tests.merge.conftest import _one_thread as _one_thread
from tests.merge.conftest import tiny_base as tiny_base
