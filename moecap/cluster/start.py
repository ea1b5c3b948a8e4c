"""All that is checked before anything runs: the same for `moecap validate` and when Snakemake starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moecap.campaign.campaign import Campaign
from moecap.campaign.sources import Sources
from moecap.cluster.requests import Cluster
from moecap.cluster.site import Site, load_site
from moecap.errors import Collector, MoecapError, Place, nearest


def start(
    files: Iterable[str | os.PathLike[str]],
    overrides: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Cluster:
    """Read and check a config and all that it names.

    Args:
        files: config files; a later one lies over an earlier one.
        overrides: keys from the command line, over all of them.
        config: what Snakemake made of these, which counts (another workflow may hand its own in); None: the same here.

    Returns:
        What the campaign's jobs ask of a cluster; the campaign itself is in it.

    Raises:
        Mistakes: everything that is wrong, a line each.
    """
    sources = Sources.read(files, overrides)
    if config is not None:
        if not config:
            raise MoecapError(
                f"There is no config. The one by default, config/config.yaml, is looked for in the working folder "
                f"({Path.cwd()}), as is all that a config names: `--configfile FILE` names another, and so does "
                "`config:` of a workflow that uses this one as a module. config/README.md tells what goes into it."
            )
        sources = sources.holding(config)
    found = Collector()
    campaign = Campaign(sources.data if config is None else config, sources, found)
    site = _site(campaign, found)
    found.finish()
    return Cluster(campaign, site)


def _site(campaign: Campaign, found: Collector) -> Site:
    path = campaign.config.site
    if path is None or campaign.is_wrong("site"):
        return Site()
    try:
        site = load_site(path)
    except MoecapError as error:
        # (the default one need not be there: load_site)
        if not Path(path).exists() and not Path(path).is_symlink():
            text = f"`site` is {path!r}, which does not exist. `site: null` goes without."
            found.add(campaign.sources.place(("site",)), text, "site")
        else:
            found.take(error, Place(path), "site")
        return Site()
    if not campaign.catalogue.wrong_hardware:
        gpus = campaign.catalogue.hardware.gpus
        for name in site.gpus:
            if name not in gpus:
                text = f"`gpus`: {name!r} is no GPU of the hardware catalogue. {nearest(name, gpus)}"
                found.add(Place(path, None, name), text, "gpus")
    return site
