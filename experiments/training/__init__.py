"""What a training run is made of: its step, programs, devices, checkpoints, and files."""
