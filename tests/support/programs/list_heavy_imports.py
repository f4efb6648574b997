"""Import the packages of the library, and print which of the modules in the arguments came with them."""

import sys

import spatialalign_rewards  # noqa: F401
import spatialalign_trl  # noqa: F401
import spatialalign_trl.prompts  # noqa: F401
import spatialalign_trl.trainer  # noqa: F401

print([name for name in sys.argv[1:] if name in sys.modules])
