"""What a training run leaves behind: checkpoints, records, shards."""
