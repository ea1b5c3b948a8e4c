"""Detect and calibrate this machine: results/machine/{hardware}.json."""

import time

from moecap import machine
from moecap.io import write_json
from moecap.workflow import script

with script(snakemake) as job:  # noqa: F821
    detected = machine.detect()
    measured = machine.calibrate(float(job.params.get("seconds", 20)), device=job.params.get("device", "cpu"))
    write_json(
        {
            **detected,
            **measured,
            "hardware": job.wildcards.hardware,
            "fingerprint": machine.fingerprint(detected),
            "unix_time_s": time.time(),
        },
        job.output[0],
    )
