"""Shard directories as sources: subsets, merges, other labels, other resolutions, without the archive."""
