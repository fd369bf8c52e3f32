"""Progress bars on a terminal: one line per stage, with steps, rate and time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from paradit.cli.text import duration


def progress_bars(console: Console) -> Progress:
    """Return bars that are drawn on a console; they are not shown before they are started."""
    return Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        RateColumn(),
        console=console,
        redirect_stdout=False,  # results are for stdout, wherever it goes
    )


class RateColumn(ProgressColumn):
    """Text column after a progress bar: seconds, rate and time left (`12.3 s, 2.41 steps/s, 8.1 s left`).

    A stage of one step shows only its seconds; a long video's frame blocks, the state of their queue.
    """

    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        if "queue" in task.fields:
            return Text(task.fields["queue"])
        elapsed = task.finished_time if task.finished else task.elapsed
        parts = [duration(elapsed or 0.0)]
        own = task.completed - task.fields.get("resumed", 0)
        if task.total and task.total > 1 and elapsed and own > 0:
            rate = own / elapsed
            parts.append(f"{rate:.3g} steps/s")
            if not task.finished:
                parts.append(f"{duration((task.total - task.completed) / rate)} left")
        return Text(", ".join(parts))
