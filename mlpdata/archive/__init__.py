"""Inside large files, at offsets; nothing is extracted."""
