"""The reports of a run: metrics, progress, the summary, traces."""
