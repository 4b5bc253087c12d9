"""The order of the stages: prepare (read no weight), build the bundle, register it."""
