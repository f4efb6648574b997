"""Find objects, depth and camera poses in videos. Import the submodules directly; this package loads nothing."""
