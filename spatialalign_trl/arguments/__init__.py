"""The recipes' command lines: dataclasses of arguments, the parser for flags and YAML, and launch checks."""
