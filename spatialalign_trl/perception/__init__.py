"""What the pictures show: boxes over time. Import the submodules directly; nothing heavy is loaded here."""
