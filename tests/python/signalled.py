# SPDX-License-Identifier: MIT
"""``signalled.py NUMBER MODULE:FUNCTION NTH ARG...``: ``lutra ARG...``, which sends itself a signal.

That happens when it calls the function for the NTH time, before the function does anything.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import sys

from lutra.cli.main import main

number, function, nth, *arguments = sys.argv[1:]
module, _, path = function.partition(":")
*outer, name = path.split(".")
owner = functools.reduce(getattr, outer, importlib.import_module(module))
original = getattr(owner, name)
calls = itertools.count(1)


@functools.wraps(original)
def signalling(*args, **kwargs):
    """The function, after the signal."""
    if next(calls) == int(nth):
        os.kill(os.getpid(), int(number))
    return original(*args, **kwargs)


signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
setattr(owner, name, signalling)

sys.exit(main(arguments))
