"""Peak rates of known devices, in 10^12 operations a second: dense products in bf16, as their maker states.

Where a data sheet gives the rate with sparsity, half of it stands here.
"""

_TFLOPS = (
    # The first name that the device's own name holds; longer ones first.
    ("GB200", 2500.0),  # nvidia.com/en-us/data-center/gb200-nvl72: 360 PFLOPS with sparsity for 72
    ("B200", 2250.0),  # DGX B200 data sheet: 36 PFLOPS with sparsity for 8
    ("H200 NVL", 835.5),  # nvidia.com/en-us/data-center/h200: 1,671 with sparsity
    ("H200", 989.5),  # the same page: 1,979 with sparsity
    ("H100 NVL", 835.5),  # nvidia.com/en-us/data-center/h100: 1,671 with sparsity
    ("H100 PCIe", 756.0),  # H100 data sheet: 1,513 with sparsity
    ("H100", 989.5),  # H100 SXM, nvidia.com/en-us/data-center/h100: 1,979 with sparsity
    ("A100", 312.0),  # A100 data sheet: 312, 624 with sparsity
)


def peak_tflops(device: str) -> float | None:
    """Of a device by the name that CUDA gives it; None where it is not known here."""
    return next((peak for name, peak in _TFLOPS if name.lower() in device.lower()), None)
