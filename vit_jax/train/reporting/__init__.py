"""What a run tells: metrics, progress, the summary, traces."""
