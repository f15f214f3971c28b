"""What a person sees: figures, the TensorBoard layout, the summary of a run.

Everything here turns a finished snapshot into something to look at, and measures nothing. The
Lightning side calls it, so it stands below that layer and imports nothing from it.
"""

from ntk_monitor.views.figures import own_style, snapshot_figures
from ntk_monitor.views.layout import band_scalars, custom_scalars_layout
from ntk_monitor.views.summary import introduction, summary_tables, summary_verdict

__all__ = [
    "band_scalars",
    "custom_scalars_layout",
    "introduction",
    "own_style",
    "snapshot_figures",
    "summary_tables",
    "summary_verdict",
]
