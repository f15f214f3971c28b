"""What ``ntk-monitor`` does, a file for each command."""
