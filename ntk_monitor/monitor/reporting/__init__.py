"""Where numbers, pictures and words go: the loggers of a training, and how to write to each."""
