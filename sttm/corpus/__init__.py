"""Which videos to index: folders, globs, single files and tables of videos, on any filesystem."""
