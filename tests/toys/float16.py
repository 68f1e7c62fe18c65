"""Whether DeepSpeed computes in float16 here: on CPUs it asks for AVX512-FP16, which few have."""

import pytest
from deepspeed.accelerator import get_accelerator

FP16 = bool(get_accelerator().is_fp16_supported())
WITHOUT = "DeepSpeed takes no float16 on this processor"
needs_fp16 = pytest.mark.skipif(not FP16, reason=WITHOUT)
