"""Lock a folder, print a line, and keep the lock until killed. Argument: the folder."""

import sys
import time

from spatialalign_trl.files import lock_folder

with lock_folder(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
