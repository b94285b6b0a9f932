"""The channel between a `ZMQStreamer` and its worker process."""
