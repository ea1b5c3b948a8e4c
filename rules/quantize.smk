# Variants at lower precision, made by llmcompressor, which lives in an environment of its own.


rule quantize:
    input:
        manifest=lambda wc: graph.base_manifest(wc.variant),
        data=lambda wc: demo_data_of(*graph.calibration_datasets(wc.variant)),
    output:
        manifest=f"{paths.results}/models/{{variant}}/manifest.json",
    log:
        log_of("quantize", "variant"),
    benchmark:
        benchmark_of("quantize", "variant")
    wildcard_constraints:
        variant=one_of(graph.variants_of("quantize")),
    conda:
        "../envs/quantize.yaml"
    threads: 2
    resources:
        **asked("quantize"),
    params:
        recipe=lambda wc: campaign.params.quantize(wc.variant),
        heldout=campaign.params.heldout(),
        trust_remote_code=lambda wc: campaign.params.trusted(wc.variant),
        python=campaign.config.quantize_python,
        code=code("quantize.py"),
    script:
        "../scripts/quantize.py"


# The same in the formats of engines that have one of their own.
rule convert_gguf:
    input:
        manifest=lambda wc: graph.base_manifest(wc.variant),
    output:
        manifest=f"{paths.results}/models/{{variant}}/manifest.json",
    log:
        log_of("convert_gguf", "variant"),
    benchmark:
        benchmark_of("convert_gguf", "variant")
    wildcard_constraints:
        variant=one_of(graph.variants_of("convert_gguf")),
    conda:
        "../envs/engine-cpu.yaml"
    resources:
        **asked("convert_gguf"),
    params:
        recipe=lambda wc: campaign.params.quantize(wc.variant),
        code=code("convert_gguf.py"),
    script:
        "../scripts/convert_gguf.py"
