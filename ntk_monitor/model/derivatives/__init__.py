"""The model as a function of its parameters, and the products of its derivative."""
