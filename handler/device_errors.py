"""Tells errors that end a worker from errors that it survives.

After some CUDA errors (an illegal address, a failed assertion, a lost device) every later call in the same process
fails: such a worker must end, so that TorchServe starts a new one. Left alone, TorchServe answers 507 and keeps it
(pytorch/serve#3114). Memory that ran out is not such an error.
"""

import logging
import re
import sys
from collections.abc import Iterator

logger = logging.getLogger(__name__)

# What torch, cuBLAS, cuDNN, ONNX Runtime and TensorRT write of the driver's errors.
_DEVICE_ERROR = re.compile(
    r"\b(CUDA|NVRTC|cuDNN|CUBLAS|HIP)( driver)? (error|failure)|\bcudaError|\bCUBLAS_STATUS_|\bCUDNN_STATUS_"
    r"|illegal memory access|device-side assert|unspecified launch failure",
    re.IGNORECASE,
)
_MEMORY_ERROR = re.compile(
    r"out of memory|cudaErrorMemoryAllocation|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_ALLOC_FAILED"
    r"|can't allocate memory|failed to allocate memory|bad_?alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that memory ran out, on the host or the device."""
    return any(isinstance(each, MemoryError) or _MEMORY_ERROR.search(str(each)) for each in _list_causes(error))


def is_device_error(error: BaseException) -> bool:
    """Whether an error, or one that caused it, comes from a GPU's driver and is no lack of memory."""
    if is_out_of_memory(error):
        return False
    return any(
        type(each).__name__ == "AcceleratorError" or _DEVICE_ERROR.search(str(each)) for each in _list_causes(error)
    )


def end_if_device_is_lost(error: BaseException, *, device: str) -> None:
    """Ends the worker where an error has left its GPU unusable; returns otherwise.

    Raises:
        SystemExit: TorchServe's worker catches exceptions but not this. The frontend answers the batch with 500 and
            starts a new worker.
    """
    if is_device_error(error) and not answers(device):
        logger.critical("%s is lost, this worker ends and TorchServe starts a new one", device, exc_info=error)
        raise SystemExit(f"{device} is lost: {error}") from error


def answers(device: str) -> bool:
    """Whether a GPU still computes; False where that cannot be asked."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return False
    try:
        return bool(torch.ones(1, device=device).add(1).item() == 2)
    except Exception:  # torch raises what the driver says, of several types; its text is in the log already
        return False


def free_memory() -> None:
    """Gives back what torch keeps of a GPU's memory for later, after there was too little."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
