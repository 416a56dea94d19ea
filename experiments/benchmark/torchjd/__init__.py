"""The same steps in PyTorch with TorchJD, timed beside ours."""
