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


# Answers to open questions against a baseline's, by a judge over the network: no engine is loaded.
rule judge:
    input:
        manifest=paths.manifest,
        samples=paths.samples,
    output:
        judged=paths.judged,
        games=paths.games,
    log:
        f"{paths.log}/judge/{{model}}/{{precision}}/{{engine}}/{{dataset}}-{{settings}}.log",
    benchmark:
        f"{paths.benchmark}/judge/{{model}}/{{precision}}/{{engine}}/{{dataset}}-{{settings}}.tsv"
    wildcard_constraints:
        dataset="[^/]+",
        settings="[0-9a-f]{8}",
    conda:
        f"../envs/{graph.conda_environment}.yaml"
    params:
        judge=lambda wc: campaign.params.judge(**wc),
        code=code("judge.py"),
    script:
        "../scripts/judge.py"
