"""Published rows: reading them, downloading their files and writing tables."""
