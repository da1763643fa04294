"""Files that are read at the same time, in several threads."""

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tasks.volume.scan import reading


def test_files_do_not_wait_for_each_other_and_each_gets_its_own_warnings():
    together = Barrier(3, timeout=60)

    def read(name):
        with reading(Path(name)) as messages:
            together.wait()
            warnings.warn(f"{name} is odd", stacklevel=1)
            logging.getLogger("nibabel.global").warning("the header of %s is odd", name)
            together.wait()
        return messages

    with warnings.catch_warnings(record=True) as elsewhere, ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(read, "one"), pool.submit(read, "other")
        together.wait()
        warnings.warn("nobody reads here", stacklevel=1)
        together.wait()
        assert one.result() == ["one is odd", "the header of one is odd"]
        assert other.result() == ["other is odd", "the header of other is odd"]
    assert [str(warning.message) for warning in elsewhere] == ["nobody reads here"]
    with pytest.raises(UserWarning):  # the filters are those of before
        warnings.warn("as ever", stacklevel=1)
