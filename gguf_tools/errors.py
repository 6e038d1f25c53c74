# SPDX-License-Identifier: MIT
"""What is meant for the person at the keyboard: the one exception, and warnings."""

import logging

_LOGGER = logging.getLogger("gguf_tools")
