"""The host's half of the bare guest: reads its reports, judges them, plants damage in its memory.

docs/bare-guest.md describes the lines, the pages and what each check catches.
"""
