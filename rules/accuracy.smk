# Accuracy by lm-eval: keyed by model, precision, engine and settings, shared by every deployment that has them.


rule evaluate:
    input:
        manifest=paths.manifest,
        data=lambda wc: demo_data_of(wc.dataset),
    output:
        accuracy=paths.accuracy,
        samples=paths.samples,
    log:
        f"{paths.log}/accuracy/{{model}}/{{precision}}/{{engine}}/{{dataset}}-{{settings}}.log",
    benchmark:
        f"{paths.benchmark}/accuracy/{{model}}/{{precision}}/{{engine}}/{{dataset}}-{{settings}}.tsv"
    wildcard_constraints:
        dataset="[^/]+",
        settings="[0-9a-f]{8}",
    conda:
        f"../envs/{graph.conda_environment}.yaml"
    container:
        cluster.container
    resources:
        **asked("evaluate"),
    params:
        settings=lambda wc: campaign.params.accuracy(**wc),
        code=code("accuracy.py"),
    script:
        "../scripts/accuracy.py"
