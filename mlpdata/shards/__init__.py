"""What a shard directory is: manifest, formats, index, card; here and elsewhere."""
