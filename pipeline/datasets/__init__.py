"""Each module turns a folder on disk into a samples table."""
