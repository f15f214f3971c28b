"""The parts of a measurement: its settings, the kernel's products and checks, the snapshot."""
