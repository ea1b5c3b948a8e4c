# MoE-CAP: cost, accuracy and performance of sparse Mixture-of-Experts deployments.
#
# Results lie under `results/` (or `results:` of the config), stage by stage, in the order of the data:
#   models/ -> anatomy/, accuracy/, performance/ -> routing/ -> metrics/ -> cost/ -> cap.parquet -> charts/, report.html
# A path explains itself: accuracy is keyed by model/precision/engine, performance by deployment. `moecap/paths.py`
# is the only place that knows. What is measured once lies in results/spool and survives failed jobs.
import os

from snakemake.utils import min_version

min_version("9.20")

# The demo is the default; a config given by --configfile replaces it, as does `config:` of a workflow that uses this one.
if os.path.exists("config/config.yaml") and not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "report/workflow.rst"


include: "rules/common.smk"
include: "rules/models.smk"
include: "rules/quantize.smk"
include: "rules/anatomy.smk"
include: "rules/bytes.smk"
include: "rules/accuracy.smk"
include: "rules/performance.smk"
include: "rules/routing.smk"
include: "rules/metrics.smk"
include: "rules/cost.smk"
include: "rules/published.smk"
include: "rules/compare.smk"


if campaign.archive_file:

    include: "rules/redraw.smk"

else:

    include: "rules/report.smk"
    include: "rules/archive.smk"
    include: "rules/plan.smk"


include: "rules/targets.smk"


rule all:
    default_target: True
    input:
        report_paths.cap,
        report_paths.charts,
        report_paths.report,


check_what_is_asked_for()


onstart:
    begin_run()


onerror:
    report_over_what_there_is()
