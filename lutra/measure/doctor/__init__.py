# SPDX-License-Identifier: MIT
"""``lutra doctor``: what this machine is, what it reaches, and what keeps it from more.

A module looks at one thing, and ``report`` puts it together; docs/DOCTOR.md has the result. Each takes the
``System`` that it looks at, so that tests can show it another. What a system does not tell is None.
"""
