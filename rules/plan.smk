# Predictions for hardware that need not be owned, calibrated by what was measured here, where anything was.


rule plan:
    input:
        anatomy=campaign.anatomy_files(),
        cap=paths.cap,
        metrics=expand(paths.metrics, deployment=campaign.deployments),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.deployments),
        machines=expand(paths.machine, hardware=campaign.hardware_in_use),
        hardware=campaign.hardware_files,
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
        plan=campaign.plan_params(),
        code=code("plan.py"),
    script:
        "../scripts/plan.py"


# How wrong those predictions are here: in the report.
rule cross_check:
    input:
        anatomy=campaign.anatomy_files(),
        metrics=expand(paths.metrics, deployment=campaign.reported),
        routing_analysis=expand(paths.routing_analysis, deployment=campaign.reported),
        machines=campaign.machine_files(),
    output:
        cross_check=report_paths.cross_check,
    log:
        log_of("cross_check", root=report_paths),
    benchmark:
        benchmark_of("cross_check", root=report_paths)
    conda:
        "../envs/core.yaml"
    params:
        cross_check=campaign.cross_check_params(),
        code=code("cross_check.py"),
    script:
        "../scripts/cross_check.py"
