# Input functions and small helpers that the rules name. What they compute lies in the library.
import contextlib
import inspect
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

# Where this workflow lies: not where the Snakefile does that Snakemake was started with, if that one uses it as a module.
root = Path(str(workflow.current_basedir)).parent
if not (root / "moecap").is_dir():
    sys.exit(
        'error: MoE-CAP is used from a clone, `snakefile: "CLONE/Snakefile"`: its rules need the library that lies beside '
        "them, and of a workflow that is named by an address Snakemake fetches the rules alone."
    )
is_module = not workflow.modifier.is_main_snakefile()
sys.path.insert(0, str(root))
from moecap.errors import MoecapError, shown
from moecap.jobs import progress, running

# What Snakemake may be asked for beside a run that is at work: it shows, or lifts a lock.
LOOKS = ("dryrun", "unlock", "lint", "list_rules", "list_target_rules", "summary")
LOOKS += ("detailed_summary", "dag", "rulegraph", "filegraph", "d3dag", "report")
LOOKS += ("list_changes", "list_input_changes", "list_params_changes", "list_untracked")
LOOKS += ("print_compilation", "containerize", "cleanup_metadata", "list_conda_envs")


def command_line():
    """What Snakemake was asked for; None: not from the command line. It does not tell a workflow before it has read it."""
    from snakemake.cli import parse_args

    try:
        with contextlib.redirect_stderr(None):
            return parse_args(sys.argv[1:])[1]
    except (Exception, SystemExit):
        return None


def refuse(error):
    """End with what is wrong, a line each; Snakemake would put its own file, line and stack around it."""
    print(shown(error), file=sys.stderr)
    sys.exit(1)


# Before anything heavy: a second start should cost the run that is at work as little as possible.
given = command_line() if workflow.is_main_process else None
if Path(workflow.basedir) != root:
    # Scripts find the library by the folder of the Snakefile that was started, which is another's here.
    running.add_to_python_path(root)
if is_module and not config:
    config.update(workflow.config_settings.overwrite_config)
works = given is not None and not any(getattr(given, name, None) for name in LOOKS)
if works:
    try:
        running.refuse_second(str(config.get("results") or "results"))
    except MoecapError as error:
        refuse(error)

from moecap.campaign.targets import check_targets
from moecap.charts import standard as charts
from moecap.cluster.start import start
from moecap.jobs.failures import RUN, explain_kills, summary
from moecap.jobs.records import keep_records, restore_times
from moecap.paths import fill
from moecap.provenance import code_fingerprint
from moecap.redact import filter_log
from moecap.cluster.site import UNASKED, local_rules, shell_prefix

# What Snakemake says of jobs, commands and errors goes to the terminal and to files: without secrets.
logger.addFilter(filter_log)

# The jobs of this run know each other by it, also on a cluster's nodes: what failed for good is not tried again.
os.environ.setdefault(RUN, f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}")

try:
    # What `moecap validate` does.
    cluster = start(
        workflow.configfiles,
        workflow.config_settings.config,
        config,
    )
except MoecapError as error:
    refuse(error)

campaign = cluster.campaign
if works and not campaign.config.partial:
    progress.attach(logger, given.quiet)

paths = campaign.paths
graph = campaign.graph
report_paths = graph.report_paths

# What results were made from moves with them, and is compared wherever they are.
keep_records(paths.results)
if workflow.is_main_process and not campaign.config.partial:
    if moved := restore_times(paths.results):
        logger.info(
            f"{paths.results} was copied: {moved} files that are as they were made have the times of their making again."
        )

if workflow.remote_exec:
    shell.prefix(shell_prefix(cluster.site))
if workflow.is_main_process and not campaign.config.partial:
    for note in [*campaign.warnings, cluster.estimate()]:
        if note is not None:
            logger.warning(str(note))
if works:
    # Before Snakemake looks at its lock: what it would say of it is not true here.
    try:
        lifted = running.lift_stale_lock(paths.results)
        running.claim(paths.results)
    except MoecapError as error:
        refuse(error)
    if lifted:
        logger.warning(lifted)


def check_what_is_asked_for():
    """A target that is mistyped, before Snakemake says that no rule makes it."""
    if is_module:  # the other workflow's targets are not known yet
        return
    try:
        check_targets(getattr(given, "targets", None) or (), map(str, workflow.rules))
    except MoecapError as error:
        refuse(error)


def begin_run():
    """Refuse a second run on these results, and end what a killed one left at work here and in Slurm."""
    slurm = workflow.executor_plugin.name == "slurm"
    try:
        for line in running.begin(paths.results, slurm=slurm):
            logger.warning(line)
    except MoecapError as error:
        raise WorkflowError(str(error))


def asked(rule):
    """The resources of a rule: what its jobs ask of a cluster; nothing where no cluster is (`--jobs` comes with one)."""
    if workflow.resource_settings.nodes is None:
        return {}

    def resource(key):
        def value(wildcards, attempt):
            try:
                found = cluster.resources(rule, dict(wildcards.items()), attempt)
            except MoecapError as error:
                if not workflow.local_exec:
                    raise WorkflowError(str(error))
                found = {}  # this machine is not what the site describes
            return found.get(key, UNASKED.get(key))

        # Snakemake looks at it for every job anew: half of a large dry-run's time where it has to be worked out.
        value.__signature__ = inspect.signature(value)
        return value

    alike, differ = cluster.shared(rule)
    return {
        **alike,
        **{key: resource(key) for key in differ},
    }


def code(script, *more):
    """The fingerprint of a script and of the library modules behind it (see moecap/provenance.py)."""
    return code_fingerprint(
        f"{root}/scripts/{script}", *(f"{root}/{path}" for path in more)
    )


def one_of(values):
    """A wildcard constraint: any of these and nothing else."""
    return "|".join(re.escape(value) for value in values) or "(?!)"


def log_of(rule, *wildcards, root=paths):
    return str(Path(root.log, rule, *(f"{{{w}}}" for w in wildcards))) + ".log"


def benchmark_of(rule, *wildcards, root=paths):
    return str(Path(root.benchmark, rule, *(f"{{{w}}}" for w in wildcards))) + ".tsv"


def report_over_what_there_is():
    """After a failure: what failed and why, and a report of the deployments that succeeded with the failed ones named."""
    if campaign.config.partial:
        return
    explain_kills(paths.failures, os.environ[RUN])
    for line in summary(paths.failures, os.environ[RUN]):
        logger.error(line)
    if not campaign.deployments or campaign.config.before:
        return
    # The config as it is, whatever it was made from; only tables and charts are made, here, by no cluster's profile.
    config_file = graph.partial_config()
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        "--nolock",
        "--quiet",
        "all",
    ]
    command += ["--profile", "none", "--workflow-profile", "none"]
    command += [
        "--snakefile",
        str(root / "Snakefile"),
        "--configfile",
        config_file,
    ]
    command += ["--allowed-rules", *graph.reporting_rules, "--", "charts", "report"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        logger.error(
            f"Incomplete: a report over what there is lies in {paths.results}/partial/report.html. It is not archived: "
            "an archive is of a finished campaign. To archive what there is, take the failed deployments out of the "
            "table and ask for `archive` again."
        )
    else:
        logger.error(
            f"No report over what there is (exit status {done.returncode}): {done.stderr.strip()[-2000:]}"
        )


def compared(which):
    """An input function: one of the two archives that are to be compared."""

    def function(wildcards):
        if getattr(campaign.config, which) is None:
            raise WorkflowError(
                f"compare needs two archives and `{which}` is not given: "
                "snakemake compare --config before=A.tar.zst after=B.tar.zst"
            )
        return getattr(campaign.config, which)

    return function


def timed_threads(wildcards):
    """Every core of this machine, so that nothing else runs beside a timed run; on a cluster the site decides."""
    return (workflow.cores or 1) if workflow.local_exec else 1


def demo_data_of(*datasets):
    return [paths.demo_data] if graph.uses_demo_data(*datasets) else []


def deployment_manifest(wildcards):
    row = campaign.deployment(wildcards.deployment)
    return fill(paths.manifest, model=row.model, precision=row.precision)


def by_variant(pattern):
    """An input function: the file of the deployment's model and precision."""

    def function(wildcards):
        row = campaign.deployment(wildcards.deployment)
        return fill(pattern, model=row.model, precision=row.precision)

    return function


def deployment_machine(wildcards):
    return fill(
        paths.machine, hardware=campaign.deployment(wildcards.deployment).hardware
    )


def deployment_demo_data(wildcards):
    return demo_data_of(*campaign.deployment(wildcards.deployment).datasets)


def replay_requests(wildcards):
    return [
        fill(paths.requests, deployment=d)
        for d in graph.deployments_of(wildcards.model, wildcards.precision)
    ]


def chart_section(wildcards):
    """Where Snakemake's own report shows a chart: in the section that our report has it in."""
    return charts.caption_of(wildcards.name)[0]


def chart_captions():
    """What stands below each chart there, by the name of the chart (of a deployment's: its beginning)."""
    return charts.captions()
