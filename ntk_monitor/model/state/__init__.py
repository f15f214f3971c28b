"""Which activations are the state, the numbers of its rows, and recurrent layers step by step."""
