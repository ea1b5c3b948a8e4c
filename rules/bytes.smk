# Bytes that a decode step really reads, counted op by op: what the predicted bytes of the metrics are held against.


rule measure_bytes:
    input:
        manifest=paths.manifest,
        anatomy=paths.anatomy,
    output:
        table=paths.measured_bytes,
    log:
        log_of("measure_bytes", "model", "precision"),
    benchmark:
        benchmark_of("measure_bytes", "model", "precision")
    conda:
        "../envs/anatomy.yaml"
    # Enough for a model that the workflow trains, and leaves the other cores to others; `--set-threads` for larger ones.
    threads: 1
    resources:
        **asked("measure_bytes"),
    params:
        run=lambda wc: campaign.params.measured_bytes(wc.model, wc.precision),
        code=code("measure_bytes.py"),
    script:
        "../scripts/measure_bytes.py"
