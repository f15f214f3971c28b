"""Where weights multiply activity on the rows of the state, and how they are seen."""
