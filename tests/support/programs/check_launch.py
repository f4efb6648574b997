"""Check how this process was launched, and say that it ran."""

from spatialalign_trl.arguments.launch import check_launch

check_launch()
print("ran")
