"""Looking at a shard directory and at the machine."""
