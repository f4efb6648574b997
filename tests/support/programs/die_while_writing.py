"""Write a file with `write_atomic`, and exit with code 9 between the writing and the renaming, as if killed there.

Argument: the file.
"""

import os
import sys

from spatialalign_trl import files


def exit_at_once(source: str, target: str) -> None:
    os._exit(9)


os.replace = exit_at_once
files.write_atomic(sys.argv[1], b"half")
