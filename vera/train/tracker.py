"""Where curves go while a run is going on. The record does not depend on it."""

from __future__ import annotations

import hashlib
import netrc
import os
from typing import Any, Literal

from vera.config import Strict
from vera.errors import ConfigError


class NoTracker(Strict):
    """tracker=none."""

    def check(self) -> None:
        """Before time is spent: raises ConfigError when curves could not be sent."""

    def start(self, name: str, config: dict[str, Any], results_dir: str) -> None:
        """Begin a run's curves, or go on with them."""

    def log(self, values: dict[str, float], step: int) -> None:
        pass

    def finish(self) -> None:
        pass


class Wandb(Strict):
    """tracker=wandb: Weights & Biases, offline unless `tracker.mode=online` (then `wandb login` comes first)."""

    project: str
    mode: Literal["offline", "online"]

    def check(self) -> None:
        if self.mode == "online" and login() is None:
            raise ConfigError("tracker.mode=online needs a login: `wandb login`, or WANDB_API_KEY; or tracker.mode=offline")

    def start(self, name: str, config: dict[str, Any], results_dir: str) -> None:
        """Go on with the curves of the run of this name and these results, if there are any: others may share its name."""
        import wandb

        own = f"{name}-{hashlib.sha256(os.path.realpath(results_dir).encode()).hexdigest()[:8]}"

        # What wandb would collect by itself (command line, host, address of the git remote) may hold secrets or paths.
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_machine_info=True
        )
        wandb.init(project=self.project, name=name, id=own, resume="allow", config=config, mode=self.mode, settings=settings)

    def log(self, values: dict[str, float], step: int) -> None:
        import wandb

        wandb.log(values, step=step)

    def finish(self) -> None:
        import wandb

        wandb.finish()


def login() -> str | None:
    """Where Weights & Biases finds its key, never the key; None where it finds none."""
    if os.environ.get("WANDB_API_KEY", "").strip():
        return "WANDB_API_KEY is set"
    try:
        return "~/.netrc" if netrc.netrc().authenticators("api.wandb.ai") is not None else None
    except (OSError, netrc.NetrcParseError):
        return None
