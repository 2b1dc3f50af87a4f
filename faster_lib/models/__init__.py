"""The networks of the paper, in plain PyTorch: they import torch alone."""
