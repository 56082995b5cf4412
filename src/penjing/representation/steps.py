"""Step sizes as files hold them: powers of two to the 16th part, so that a step is one small integer.

    step(k) = 2**(k / 16),   k = -2048 .. 2047

Two neighbours differ by 4.4 %. The sixteen mantissas are written out, so the same k is the same float32 everywhere.
"""

import torch
from torch import Tensor

PER_OCTAVE = 16
SMALLEST, LARGEST = -2016, 2016  # 2**-126 to 2**126: normal float32 numbers

_MANTISSAS = (
    *(8388608, 8760003, 9147842, 9552851, 9975792, 10417458, 10878679, 11360319),
    *(11863283, 12388516, 12937002, 13509772, 14107901, 14732511, 15384775, 16065917),
)
"""round(2**(i / 16) * 2**23)"""


def steps_of(exponents: Tensor) -> Tensor:
    """2**(k / 16) as float32, exactly as loaded from a file; any shape."""
    whole = exponents.long().clamp(SMALLEST, LARGEST)
    octave = torch.div(whole, PER_OCTAVE, rounding_mode="floor")
    mantissas = torch.tensor(_MANTISSAS, dtype=torch.float32, device=exponents.device) * 2.0**-23
    return torch.ldexp(mantissas[whole - PER_OCTAVE * octave], octave)


def exponents_of(steps: Tensor) -> Tensor:
    """The nearest k on the logarithmic scale, int16; steps that are not positive get the smallest."""
    wanted = torch.log2(steps.detach().double().clamp_min(2.0**-126)) * PER_OCTAVE
    return torch.round(wanted).clamp(SMALLEST, LARGEST).to(torch.int16)
