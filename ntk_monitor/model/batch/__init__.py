"""What to feed a module, what it answers, what it should have answered, and copies of batches."""
