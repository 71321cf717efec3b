"""Where curves go while a run is going on. The record does not depend on it."""

from __future__ import annotations

from typing import Any, Literal

from vera.config import Strict


class NoTracker(Strict):
    """tracker=none."""

    def start(self, name: str, config: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        pass

    def finish(self) -> None:
        pass


class Wandb(Strict):
    """tracker=wandb: Weights & Biases, offline unless `tracker.mode=online` (then `wandb login` comes first)."""

    project: str
    mode: Literal["offline", "online"]

    def start(self, name: str, config: dict[str, Any]) -> None:
        import wandb

        # What wandb would collect by itself (command line, host, address of the git remote) may hold secrets or paths.
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_meta=True, x_disable_machine_info=True
        )
        wandb.init(project=self.project, name=name, id=name, resume="allow", config=config, mode=self.mode, settings=settings)

    def log(self, values: dict[str, float], step: int) -> None:
        import wandb

        wandb.log(values, step=step)

    def finish(self) -> None:
        import wandb

        wandb.finish()
