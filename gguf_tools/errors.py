# SPDX-License-Identifier: MIT
"""What is meant for the person at the keyboard: the one exception, progress, and warnings."""

import logging

_LOGGER = logging.getLogger("gguf_tools")


class LutraError(Exception):
    """One line: what went wrong, with which file or tensor, and what to do next."""


class Unfamiliar(LutraError):
    """A model of a family that is read here has something that is not; llama.cpp's converter may know it."""


def say(message: str) -> None:
    """One line of progress, to the logger "gguf_tools"."""
    _LOGGER.info("%s", message)


def warn(message: str) -> None:
    """One line about what was left out or is not as it seems, to the logger "gguf_tools"."""
    _LOGGER.warning("%s", message)
