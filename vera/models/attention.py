"""What may compute attention on a GPU."""

import torch


def allow_cudnn(allowed: bool) -> None:
    """For this process, until it is said otherwise: whether torch may give attention to cuDNN, which on Hopper plans anew, for
    seconds, for every length of a masked batch that it has not met (docs/speed.md)."""
    torch.backends.cuda.enable_cudnn_sdp(allowed)
