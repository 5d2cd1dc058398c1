"""Where models train and run, and what that is called in records and tables."""

import torch


def device() -> torch.device:
    """Return the accelerator, if there is one that works, else the CPU.

    A build of torch for CUDA names its accelerator also where no GPU is, unless it is asked to look.
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_name() -> str:
    """Return the GPU's name, or how many threads of the CPU are used."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
