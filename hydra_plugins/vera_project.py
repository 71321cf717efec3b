"""The yamls of a project outside this repository, beside those of conf/. Hydra looks for plugins in this package."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vera.config.components import conf_folders


class VeraProject(SearchPathPlugin):
    """Hydra reads conf/ first; that a project's yaml has the name of one of them is refused by `conf_folders`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in conf_folders()[1:]:
            search_path.append("project", f"file://{folder}")
