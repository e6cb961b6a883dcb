"""Shard directories in other formats, for other libraries."""
