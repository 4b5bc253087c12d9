"""The output of a training run: training checkpoints, records, shards."""
