"""Which parameters are studied, and where each process has a part; wrapped modules as written."""
