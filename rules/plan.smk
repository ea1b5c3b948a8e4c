# Predictions for hardware that need not be owned, calibrated by what was measured here, where anything was.


rule plan:
    input:
        anatomy=campaign.anatomy_files(),
        cap=paths.cap,
        metrics=expand(paths.metrics, deployment=campaign.deployments),
        machines=expand(paths.machine, hardware=campaign.hardware_in_use),
        hardware=campaign.hardware_files,
    output:
        plan=report(paths.plan, caption="../report/plan.rst", category="Tables"),
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
