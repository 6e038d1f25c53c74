# SPDX-License-Identifier: MIT
"""The command ``lutra``: one module per verb. Arguments in, printing out; nothing else imports it."""
