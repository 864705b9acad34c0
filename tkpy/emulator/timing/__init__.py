"""A model of time: what a kernel that ran in the emulator would take on a GPU; always a prediction.

    run = module.launch("gemm", ..., trace=132)             # record what one place of a 132-SM machine does
    prediction = tkpy.emulator.timing.predict(run.trace)     # on an H100 SXM, by published rates and latencies
    print(prediction)                                        # cycles, what binds, what warps waited for
    prediction.write_chrome("out.json")                      # for Perfetto or chrome://tracing

`trace` replays the emulator's record (`record`) of one SM (of a cluster: one SM for each of its CTAs) over resources
with the rates of `rates`; `decode` says what each PTX instruction needs; `chrome` writes the picture. What is
modelled, what is not, and how far it is from published measurements: docs/timing.md. No number in it was fitted to a
kernel's own time.
"""

from __future__ import annotations

from tkpy.emulator.timing.rates import Rates
from tkpy.emulator.timing.record import Trace
from tkpy.emulator.timing.replay import Prediction, predict

__all__ = ["Prediction", "Rates", "Trace", "predict"]
