# Parameters, bytes and FLOPs per layer and component, counted from what is stored.


rule anatomy:
    input:
        manifest=paths.manifest,
    output:
        anatomy=paths.anatomy,
        table=paths.anatomy_table,
    log:
        log_of("anatomy", "model", "precision"),
    benchmark:
        benchmark_of("anatomy", "model", "precision")
    conda:
        "../envs/anatomy.yaml"
    params:
        model=lambda wc: campaign.params.anatomy(wc.model, wc.precision),
        # How a config is read; entries of models come as params.
        code=code(
            "anatomy.py",
            "config/catalogue/config_keys.yaml",
            "config/catalogue/architectures",
        ),
    script:
        "../scripts/anatomy.py"
