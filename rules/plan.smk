# Predictions for hardware that need not be owned, calibrated by what was measured here, where anything was.


rule plan:
    input:
        anatomy=graph.anatomy_files(),
        cap=paths.cap,
        metrics=expand(paths.metrics, deployment=campaign.deployments),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.deployments),
        machines=expand(paths.machine, hardware=graph.hardware_in_use),
        hardware=graph.hardware_files,
    output:
        plan=report(paths.plan, caption="../report/plan.rst", category="Tables"),
        answers=report(paths.answers, caption="../report/plan.rst", category="Tables"),
    log:
        log_of("plan"),
    benchmark:
        benchmark_of("plan")
    conda:
        "../envs/core.yaml"
    params:
        plan=campaign.params.plan(),
        code=code("plan.py"),
    script:
        "../scripts/plan.py"


# How wrong those predictions are here: in the report.
rule cross_check:
    input:
        anatomy=graph.anatomy_files(),
        metrics=expand(paths.metrics, deployment=graph.reported),
        routing_analysis=expand(paths.routing_analysis, deployment=graph.reported),
        machines=graph.machine_files(),
    output:
        cross_check=report_paths.cross_check,
    log:
        log_of("cross_check", root=report_paths),
    benchmark:
        benchmark_of("cross_check", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        cross_check=campaign.params.cross_check(),
        code=code("cross_check.py"),
    script:
        "../scripts/cross_check.py"
