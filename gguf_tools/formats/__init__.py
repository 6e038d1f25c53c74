# SPDX-License-Identifier: MIT
"""What the bytes of a tensor mean: the types, the CB family and its layout. Imports nothing of Lutra's."""
