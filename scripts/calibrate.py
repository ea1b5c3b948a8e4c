"""Detect and calibrate the machine that the job runs on: results/machine/{hardware}.json.

Params: hardware: device ("cpu" or "cuda"); optionally seconds (for the calibration), gpu_names and gpus (what NVML must
        call the GPUs, and how many there must be at least) or cpu_names: the job fails on another machine.
"""

import time

from moecap.hardware import machine
from moecap.io import write_json
from moecap.jobs.workflow import script

with script(snakemake) as job:  # noqa: F821
    params = dict(job.params.get("hardware") or {})
    name = job.wildcards.hardware
    detected = machine.detect()
    machine.check_is(params, detected, name)
    measured = machine.calibrate(float(params.get("seconds", 20)), params.get("device", "cpu"))
    write_json(
        {
            **detected,
            **measured,
            "hardware": name,
            "fingerprint": machine.fingerprint(detected),
            "unix_time_s": time.time(),
        },
        job.output[0],
    )
