"""What trains: Lightning, a loop of one's own or Fabric, and the Trainer of transformers."""
