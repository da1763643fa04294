"""A tool for workers."""

import os
import signal
from pathlib import Path

from configs.errors import InputError


class Doubler:
    """Doubles numbers; on request it dies, hangs or raises, once or always."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, number, fate=None, times=0):
        marks = len(list(self.folder.glob(f"{number}-*"))) if times else 0
        if marks < times:
            (self.folder / f"{number}-{marks}").touch()
            if fate == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == "hang":
                signal.pause()
            if fate == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            if fate == "refuse":
                raise InputError(f"Cannot double {number}.")
            if fate == "break":
                raise KeyError(number)
            if fate == "outgrow":
                bytearray(1 << 60)
        return 2 * number
