"""The alert: the rule that judges target modes, reasons, the service with both, delivery."""
