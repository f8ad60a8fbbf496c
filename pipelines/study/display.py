"""What a study shows: a line for each trial, and the best one at its end."""

from __future__ import annotations

from rich.markup import escape

from torchyard.pipelines.display import Display


class StudyDisplay(Display):
    """Follows a study."""

    def result(self, ui_command: str, served: bool) -> None:  # noqa: D102 - as a run's
        if self._console is None:
            return
        show, outcome = self._console.print, self.outcome
        counts = f"{outcome.complete} complete, {outcome.pruned} pruned, {outcome.failed} failed"
        show(f"{outcome.asked} trials: {counts}")
        if outcome.trained_steps < outcome.steps:
            steps = f"{outcome.trained_steps:,} of {outcome.steps:,}"
            show(f"Trained:     {steps} steps; trials share the others")
        best = f"trial {outcome.best}, {outcome.figure} {outcome.value:.4f}"
        show(f"Best:        [bold]{best}[/], {escape(outcome.best_run)}", soft_wrap=True)
        show(f"Run it:      [bold]{escape(outcome.command)}[/]", soft_wrap=True)
        show(f"MLflow run:  [bold]{escape(outcome.name)}[/]  {outcome.run_id}", soft_wrap=True)
        self._show_address(ui_command, served)


class QuietStudyDisplay(Display):
    """Prints the id of the best trial's run and nothing else."""

    def result(self, ui_command: str, served: bool) -> None:  # noqa: D102 - as above
        print(self.outcome.best_run_id)
