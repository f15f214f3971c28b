"""The NTK tab of TensorBoard, and what the report shares with it."""
