"""The recipes' command lines: dataclasses of arguments, the parser for flags and YAML files, and launch checks."""
