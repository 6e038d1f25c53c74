# SPDX-License-Identifier: MIT
"""The one exception whose message is meant for the person at the keyboard."""


class LutraError(Exception):
    """One line: what went wrong, with which file or tensor, and what to do next."""
