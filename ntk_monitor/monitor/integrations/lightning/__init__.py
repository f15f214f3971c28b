"""The monitor and the alert as callbacks of Lightning's Trainer."""
